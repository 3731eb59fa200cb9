"""What the side that dials says to a ZeroMQ listener: ZMTP 3.1 with CURVE, over any byte stream.

Listening is libzmq's. Dialling is not: libzmq 4.3.5 ends the whole process where the listener that
it has dialled names a short-term key of small order, and it connects to nothing but addresses. What
is here is the client's part of ZeroMQ RFC 23, 26 and 37 and no more: one connection, messages of a
bounded number of frames of bounded size, nothing that is opened by itself again.

`Client` is a state machine without a socket, a clock or a wait: bytes in, bytes and messages out.
`Connection` moves the bytes. What is received is decrypted where it stands, and a chunk of a model
stands in its place in the model from the moment that the kernel hands it over.

There are three kinds of fault. Who answers with something else is no peer. A stream that breaks, or
on which somebody between the two has changed a bit, is lost. What the peer itself has sealed and is
still wrong is a FrameError, and held against it.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Self, TypeAlias

from zmq.utils import z85

from p2pl.errors import ConnectionLost, FrameError, PullError, wrong
from p2pl.network import box
from p2pl.network.dial import Dialler
from p2pl.network.keys import CurveKeys
from p2pl.protocol.address import ALLOWED_KEY, is_curve_key
from p2pl.protocol.announce import PeerAddress

HANDSHAKE_S = 5.0
LOST = "unreachable: connection lost"
NO_HANDSHAKE = "unreachable: no CURVE handshake"
NO_PEER = "unreachable: not a p2pl peer"
KEY_REFUSED = "unreachable: refused the CURVE key"

GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
MAJOR_AT, MECHANISM = 10, slice(12, 32)
PATIENT_AT, PATIENT = 63, 1  # the greeting's last byte is filler; what `doorstep` says there
LARGE, COMMAND = 0x02, 0x04  # flags of a frame
SMALL_HEAD_BYTES, LARGE_HEAD_BYTES = 2, 9  # flags, and a size of one byte or of eight
MORE, INNER_COMMAND = 0x01, 0x02  # flags inside a box
WELCOME_BYTES = 168
MAX_HANDSHAKE_BYTES = 512  # of a command; chosen: libzmq's longest has 168
NONCE_BYTES = 8  # of a nonce as it travels; the rest says what it is for
MESSAGE, MESSAGE_IN, MESSAGE_OUT = b"\x07MESSAGE", b"CurveZMQMESSAGES", b"CurveZMQMESSAGEC"
MESSAGE_BYTES = len(MESSAGE) + NONCE_BYTES  # before its box
INSIDE_BYTES = box.TAG_BYTES + 1  # of a box before its payload: the tag and the flags
OVERHEAD_BYTES = MESSAGE_BYTES + INSIDE_BYTES
PING, PONG = b"\x04PING", b"\x04PONG"
MIN_PING_BYTES, MAX_PING_BYTES = 7, 7 + 16  # name, time to live, and a context of up to 16 bytes
MAX_UNSENT_BYTES = 4_096  # answers to pings; who sends more without reading is cut off
SMALL_BYTES = 4_096  # a frame up to this size is taken apart where it was read
BUFFER_BYTES = 16_384
SERVER_TYPES = (b"ROUTER", b"DEALER", b"REP")  # that a DEALER may talk to
REFUSALS = (b"\x03300", b"\x03400", b"\x03500")  # RFC 27, each after its length
YIELD_BYTES = 1 << 20  # taken in before the rest of the event loop has its turn; some 2 ms

Frame: TypeAlias = bytes | memoryview
Message: TypeAlias = tuple[Frame, ...]
Ready: TypeAlias = Callable[[Mapping[bytes, bytes]], None]


class Stage(Enum):
    """What comes next from the other end."""

    GREETING = "greeting"
    WELCOME = "WELCOME"
    READY = "READY"
    OPEN = "MESSAGE"


class _Large:
    """A frame that is read straight into memory of its own, or into its place in a model.

    Attributes:
        space: for its payload.
        count: bytes of it that are there.
    """

    def __init__(self, head: bytes, whole: memoryview, home: memoryview | None) -> None:
        """Begins with what stands before the payload.

        Args:
            head: short nonce, tag, and the flags as ciphertext.
            whole: room for tag, flags and payload; what stands at its beginning is put back.
            home: where the payload goes at last, if that is not in `whole`.
        """
        self.space = whole[INSIDE_BYTES:]
        self.count = 0
        self._nonce, self._sealed = head[:NONCE_BYTES], head[NONCE_BYTES:]
        self._whole, self._home = whole, home

    def open(self, key: bytes) -> tuple[int, memoryview]:
        """Returns the flags and the payload, decrypted where it stands.

        Raises:
            ValueError: nobody with this key has sealed it.
        """
        whole, kept = self._whole, bytes(self._whole[:INSIDE_BYTES])
        whole[:INSIDE_BYTES] = self._sealed
        try:
            box.open_in_place(whole, MESSAGE_IN + self._nonce, key)
            flags = whole[box.TAG_BYTES]
        finally:
            whole[:INSIDE_BYTES] = kept
        if self._home is None:
            return flags, self.space
        self._home[:] = self.space
        return flags, self._home


class _Place:
    """Memory that the second frames of coming messages belong in, one after the other."""

    def __init__(self, view: memoryview, piece_bytes: int, offset: int) -> None:
        self._view, self._piece_bytes, self._offset = view, piece_bytes, offset

    def take(self, size: int) -> tuple[memoryview, memoryview | None] | None:
        """Returns the next piece; None: what comes has another size.

        With it comes the same piece with room for a tag and flags in front of it, where there is
        any: that of the piece before, which is complete.
        """
        begin = self._offset
        end = min(begin + self._piece_bytes, len(self._view))
        if end - begin != size:
            return None
        self._offset = end
        roomy = self._view[begin - INSIDE_BYTES : end] if begin >= INSIDE_BYTES else None
        return self._view[begin:end], roomy


class Client:
    """One end of one connection, from the greeting on; the one that has dialled.

    Args:
        keys: of this end.
        server_key: that the other end must have, 32 bytes.
        max_payload_bytes: of one frame.
        max_frames: of one message.
        short: the short-term public and secret key; None: new ones, as it must be.
        ready: is given the other end's properties, and raises PullError where they do not suit.

    Raises:
        PullError: with that key there can be no secret.

    Attributes:
        stage: what must come next.
        is_patient: whether what is in front of the listener keeps what comes before its READY.
        unsent: bytes for the other end, in order; whoever sends them removes them.
        properties: that the other end says it has, by name in small letters, once it is open.
    """

    def __init__(
        self,
        keys: CurveKeys,
        server_key: bytes,
        *,
        max_payload_bytes: int,
        max_frames: int = 2,
        short: tuple[bytes, bytes] | None = None,
        ready: Ready | None = None,
    ) -> None:
        self._ready_here = ready
        self.stage = Stage.GREETING
        self.is_patient = False
        self.properties: dict[bytes, bytes] = {}
        self._server_key = server_key
        self._public, self._secret = z85.decode(keys.public), z85.decode(keys.secret)
        self._max_frame_bytes = max_payload_bytes + OVERHEAD_BYTES
        self._max_frames = max_frames
        self._frames: list[Frame] = []  # of the message that is coming in
        self._whole: Message | None = None
        self._place: _Place | None = None
        self._large: _Large | None = None
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0  # of what was read into it and is not taken apart
        self._nonce = 0
        self._their_nonce = 0
        self._short_public, self._short_secret = short or box.key_pair()
        try:
            self._key = box.shared_key(server_key, self._short_secret)
        except ValueError as fault:
            raise PullError(NO_PEER) from fault
        # The listener can be told at once what does not depend on what it says: one trip less.
        self.unsent = bytearray(GREETING + _frame(COMMAND, self._hello()))

    def put(self, *frames: bytes) -> None:
        """Adds a message to what is unsent; it must be possible to send one."""
        for index, frame in enumerate(frames):
            self._put(MORE * (index + 1 < len(frames)), frame)

    def place(self, view: memoryview, piece_bytes: int, offset: int = 0) -> None:
        """Says where the second frames of messages belong that have not begun yet.

        Args:
            view: writable; a frame that has just the size of its piece is put there.
            piece_bytes: of each but the last.
            offset: of the first piece.
        """
        self._place = _Place(view, piece_bytes, offset)

    def rest(self) -> bool:
        """Returns whether nothing came after the last message; forgets where frames belong."""
        self._place = None
        return self._begin == self._end and not self._large and not self._frames

    def room(self) -> list[memoryview]:
        """Returns the memory to read into: fill the first before the second."""
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin:
            left = self._end - self._begin
            self._buffer[:left] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, left
        free = self._buffer[self._end :]
        if self._large is None:
            return [free]
        return [self._large.space[self._large.count :], free]

    def took(self, count: int) -> None:
        """Notes that so many bytes were put into `room()`."""
        if self._large is not None:
            part = min(count, len(self._large.space) - self._large.count)
            self._large.count += part
            count -= part
        self._end += count

    def message(self) -> Message | None:
        """Returns the next message, taken out of what was read; None: more must be read.

        Nothing behind it is looked at before it is asked for.

        Raises:
            PullError: the other end is no peer, or the stream is broken.
            FrameError: what the peer itself has sealed is wrong.
        """
        while not self._whole and self._step():
            pass
        whole, self._whole = self._whole, None
        return whole

    def shake_hands(self) -> None:
        """Takes commands out of what was read, until messages can be sent or more must be read.

        Raises:
            PullError: the other end is no peer, or refuses this one.
        """
        while not self.may_send and self._step():
            pass

    @property
    def may_send(self) -> bool:
        """Whether messages can be sent: it is open, or what is sent too early is kept there."""
        return self.is_open or (self.is_patient and self.stage is Stage.READY)

    @property
    def is_open(self) -> bool:
        """Whether both ends have proved their keys."""
        return self.stage is Stage.OPEN

    def _step(self) -> bool:
        """Returns whether there was something to take apart."""
        if self._large is not None:
            return self._finish_large(self._large)
        if self.stage is Stage.GREETING:
            return self._greeting()
        there = self._buffer[self._begin : self._end]
        head = LARGE_HEAD_BYTES if there and there[0] & LARGE else SMALL_HEAD_BYTES
        if len(there) < head:
            return False
        size = int.from_bytes(there[1:head])
        self._check_frame(there[0], size)
        if size > SMALL_BYTES:
            return self._begin_large(there, size)
        if len(there) < head + size:
            return False
        self._begin += head + size
        body = there[head : head + size]
        if self.is_open:
            self._message(body)
        else:
            self._handshake(bytes(body))
        return True

    def _check_frame(self, flags: int, size: int) -> None:
        """Raises unless such a frame may come, before there is any memory for it."""
        if flags & ~(LARGE | COMMAND) or not (self.is_open or flags & COMMAND):
            raise self._broken(wrong("frame flags", got=flags, allowed="of a command or a message"))
        most = self._max_frame_bytes if self.is_open else MAX_HANDSHAKE_BYTES
        if size > most:
            raise self._broken(wrong("frame size", got=size, allowed=f"at most {most} bytes"))

    def _broken(self, what: str) -> PullError:
        fault = ConnectionLost(LOST) if self.is_open else PullError(NO_PEER)
        fault.__cause__ = FrameError(what)
        return fault

    # --- the handshake: RFC 26, sections "the HELLO command" to "the READY command"

    def _greeting(self) -> bool:
        there = self._buffer[self._begin : self._end]
        for at, value in ((0, 0xFF), (9, 0x7F)):
            if len(there) > at and there[at] != value:
                raise self._broken(wrong("greeting", got=bytes(there[:10]), allowed="ZMTP 3"))
        if len(there) > MAJOR_AT and there[MAJOR_AT] < 3:
            raise self._broken(wrong("greeting version", got=there[MAJOR_AT], allowed="3 or more"))
        if len(there) < len(GREETING):
            return False
        mechanism = bytes(there[MECHANISM])
        if mechanism != GREETING[MECHANISM]:
            raise self._broken(wrong("greeting mechanism", got=mechanism, allowed="CURVE"))
        self.is_patient = there[PATIENT_AT] == PATIENT
        self._begin += len(GREETING)
        self.stage = Stage.WELCOME
        return True

    def _handshake(self, body: bytes) -> None:
        name = body[1 : 1 + body[0]] if body else b""
        if name == b"ERROR":
            raise _refusal(body)
        if name != self.stage.value.encode():
            raise self._broken(wrong("command", got=name, allowed=self.stage.value))
        try:
            if self.stage is Stage.WELCOME:
                self._welcome(body)
            else:
                self._ready(body)
        except ValueError as fault:
            raise self._broken(f"{self.stage.value}: {fault}") from fault

    def _hello(self) -> bytes:
        """Returns the command that says which short-term key this end has, in 200 bytes."""
        short = self._next_nonce()
        proof = box.seal(bytes(64), b"CurveZMQHELLO---" + short, self._key)
        return b"\x05HELLO\x01\x00" + bytes(72) + self._short_public + short + proof

    def _welcome(self, body: bytes) -> None:
        """Learns the other end's short-term key, and answers who this end is."""
        if len(body) != WELCOME_BYTES:
            raise ValueError(f"got {len(body)} bytes, allowed {WELCOME_BYTES}")
        plain = _opened(body[24:], b"WELCOME-" + body[8:24], self._key)
        there, cookie = plain[:32], plain[32:]
        self._key = box.shared_key(there, self._short_secret)
        self.unsent += _frame(COMMAND, self._initiate(there, cookie))
        self.stage = Stage.READY

    def _initiate(self, there: bytes, cookie: bytes) -> bytes:
        vouching = os.urandom(16)
        vouch = box.seal(
            self._short_public + self._server_key,
            b"VOUCH---" + vouching,
            box.shared_key(there, self._secret),
        )
        about = _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")
        short = self._next_nonce()
        plain = self._public + vouching + vouch + about
        return (
            b"\x08INITIATE"
            + cookie
            + short
            + box.seal(plain, b"CurveZMQINITIATE" + short, self._key)
        )

    def _ready(self, body: bytes) -> None:
        short = body[6 : 6 + NONCE_BYTES]
        plain = _opened(body[14:], b"CurveZMQREADY---" + short, self._key)
        self.properties = _properties(plain)
        kind = self.properties.get(b"socket-type")
        if kind not in SERVER_TYPES:
            raise ValueError(wrong("socket type", got=kind, allowed="ROUTER"))
        if self._ready_here is not None:
            self._ready_here(self.properties)
        self._their_nonce = int.from_bytes(short)
        self.stage = Stage.OPEN

    # --- messages

    def _message(self, body: memoryview) -> None:
        """Takes a frame apart that stands in the buffer whole."""
        nonce = self._check_message(body)
        sealed = body[MESSAGE_BYTES:]
        try:
            box.open_in_place(sealed, MESSAGE_IN + nonce, self._key)
        except ValueError as fault:
            raise self._broken(str(fault)) from fault
        payload: Frame = sealed[INSIDE_BYTES:]
        piece = self._next_piece(len(payload))
        if piece is not None:
            piece[0][:] = payload
        self._take(sealed[box.TAG_BYTES], bytes(payload) if piece is None else piece[0])

    def _check_message(self, head: memoryview) -> bytes:
        """Returns the short nonce of a frame, which must be larger than all before it."""
        if len(head) < OVERHEAD_BYTES:
            allowed = f"{OVERHEAD_BYTES} bytes or more"
            raise self._broken(wrong("frame size", got=len(head), allowed=allowed))
        if head[: len(MESSAGE)] != MESSAGE:
            raise self._broken(wrong("command", got=bytes(head[:8]), allowed="MESSAGE"))
        nonce = bytes(head[len(MESSAGE) : MESSAGE_BYTES])
        if int.from_bytes(nonce) <= self._their_nonce:
            raise self._broken("nonce: one that was used before, or a smaller one")
        self._their_nonce = int.from_bytes(nonce)
        return nonce

    def _next_piece(self, size: int) -> tuple[memoryview, memoryview | None] | None:
        return self._place.take(size) if self._place and self._frames else None

    def _begin_large(self, there: memoryview, size: int) -> bool:
        """Finds memory for a large frame, and puts there what was read of it."""
        if len(there) < LARGE_HEAD_BYTES + OVERHEAD_BYTES:
            return False
        head = there[LARGE_HEAD_BYTES : LARGE_HEAD_BYTES + OVERHEAD_BYTES]
        self._check_message(head)
        payload_bytes = size - OVERHEAD_BYTES
        home, whole = self._next_piece(payload_bytes) or (None, None)
        if whole is None:
            whole = memoryview(bytearray(INSIDE_BYTES + payload_bytes))
        else:
            home = None  # it is there already
        large = _Large(bytes(head[len(MESSAGE) :]), whole, home)
        part = there[LARGE_HEAD_BYTES + OVERHEAD_BYTES :][:payload_bytes]
        large.space[: len(part)] = part
        large.count = len(part)
        self._begin += LARGE_HEAD_BYTES + OVERHEAD_BYTES + len(part)
        self._large = large
        return True

    def _finish_large(self, large: _Large) -> bool:
        if large.count < len(large.space):
            return False
        self._large = None
        try:
            flags, payload = large.open(self._key)
        except ValueError as fault:
            raise self._broken(str(fault)) from fault
        self._take(flags, payload)
        return True

    def _take(self, flags: int, payload: Frame) -> None:
        """Adds a frame to its message; the peer itself has sealed it."""
        if flags & INNER_COMMAND:
            self._heed(bytes(payload[: MAX_PING_BYTES + 1]))
            return
        if flags & ~MORE:
            raise FrameError(wrong("message flags", got=flags, allowed="0 or 1"))
        self._frames.append(payload)
        if not flags & MORE:
            self._whole, self._frames = tuple(self._frames), []
        elif len(self._frames) == self._max_frames:
            got = f"more than {self._max_frames} frames"
            raise FrameError(wrong("message", got=got, allowed=str(self._max_frames)))

    def _heed(self, command: bytes) -> None:
        """Answers a ping; a pong says nothing."""
        name = command[: len(PING)]
        if name == PING and MIN_PING_BYTES <= len(command) <= MAX_PING_BYTES:
            if len(self.unsent) > MAX_UNSENT_BYTES:
                raise FrameError("ping: many of them, by a peer that does not read the answers")
            self._put(INNER_COMMAND, PONG + command[MIN_PING_BYTES:])
        elif name != PONG or len(command) > MAX_PING_BYTES:
            raise FrameError(wrong("command", got=command, allowed="PING or PONG"))

    def _put(self, flags: int, payload: bytes) -> None:
        if not self.may_send:
            raise ValueError("the handshake is not over")
        short = self._next_nonce()
        sealed = box.seal(bytes([flags]) + payload, MESSAGE_OUT + short, self._key)
        self.unsent += _frame(0, MESSAGE + short + sealed)

    def _next_nonce(self) -> bytes:
        self._nonce += 1
        return self._nonce.to_bytes(NONCE_BYTES)


class Connection:
    """A connection to a peer whose CURVE key is proved; one task at a time uses it."""

    def __init__(self, stream: socket.socket, client: Client) -> None:
        """Takes over a stream on which nothing was said yet; `open` is what makes one."""
        self._stream, self._client = stream, client
        self._taken = 0  # bytes since the event loop had its turn

    @classmethod
    async def open(
        cls,
        dialler: Dialler,
        keys: CurveKeys,
        address: PeerAddress,
        *,
        max_payload_bytes: int,
        deadline_s: float,
        ready: Ready | None = None,
    ) -> Self:
        """Returns a connection to whoever has the CURVE key that `address` names.

        Where the other end allows it, the handshake's last answer is not waited for: it is read
        before the first message, and until then nothing is known of its properties.

        Args:
            dialler: opens the stream.
            keys: of this end.
            address: of the other one.
            max_payload_bytes: of one frame from there.
            deadline_s: seconds for the dialling; the handshake has `HANDSHAKE_S` besides.
            ready: is given the other end's properties, and raises PullError where they do not suit.

        Raises:
            PullError: there is no way to it, or nobody there who has that key and lets this in.
        """
        if not is_curve_key(address.curve_key):
            got = wrong("curve_key", got=address.curve_key, allowed=ALLOWED_KEY)
            raise PullError(f"address: {got}")
        client = Client(
            keys,
            z85.decode(address.curve_key),
            max_payload_bytes=max_payload_bytes,
            ready=ready,
        )
        hello = bytes(client.unsent)
        client.unsent.clear()
        stream = await dialler.open(address, deadline_s=deadline_s, hello=hello)
        connection = cls(stream, client)
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await connection._shake_hands()
            except TimeoutError as fault:
                raise PullError(NO_HANDSHAKE) from fault
            undo.pop_all()
        return connection

    def place(self, view: memoryview, piece_bytes: int, offset: int = 0) -> None:
        """Says where the second frames of coming messages belong; see `Client.place`."""
        self._client.place(view, piece_bytes, offset)

    async def send(self, *frames: bytes) -> None:
        """Sends a message; whether it has arrived, only an answer tells."""
        self._client.put(*frames)
        await self._flush()

    async def receive(self) -> Message:
        """Returns the next message.

        Raises:
            PullError: the connection is lost.
            FrameError: the peer has sealed what it must not.
        """
        while (message := self._client.message()) is None:
            await self._flush()
            await self._read()
        return message

    @property
    def properties(self) -> dict[bytes, bytes]:
        """What the other end says of itself, by name in small letters; before a message: maybe."""
        return self._client.properties

    def rest(self) -> bool:
        """Returns whether the connection can be kept: it is there, and nobody speaks on it.

        Where second frames belong is forgotten.
        """
        if not self._client.rest():
            return False
        try:
            self._stream.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Closes the connection, and forgets what is under way in either direction."""
        self._stream.close()

    async def _shake_hands(self) -> None:
        while not self._client.may_send:
            await self._flush()
            await self._read()
            self._client.shake_hands()

    async def _flush(self) -> None:
        unsent = bytes(self._client.unsent)
        if unsent:
            self._client.unsent.clear()
            # Who is gone may have said something before; reading tells both.
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._stream, unsent)

    async def _read(self) -> None:
        if self._taken >= YIELD_BYTES:
            self._taken = 0
            await asyncio.sleep(0)  # with bytes waiting, nothing below ever yields
        count = 0
        while not count:
            try:
                count = self._stream.recvmsg_into(self._client.room())[0]
            except BlockingIOError:
                await _readable(self._stream)
                continue
            except OSError as fault:
                raise self._lost() from fault
            if not count:
                raise self._lost()
        self._taken += count
        self._client.took(count)

    def _lost(self) -> PullError:
        return ConnectionLost(LOST) if self._client.is_open else PullError(NO_HANDSHAKE)


async def _readable(stream: socket.socket) -> None:
    """Returns when there is something to read."""
    loop = asyncio.get_running_loop()
    news: asyncio.Future[None] = loop.create_future()
    loop.add_reader(stream, lambda: None if news.done() else news.set_result(None))
    try:
        await news
    finally:
        loop.remove_reader(stream)


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) > 0xFF:
        return bytes([flags | LARGE]) + len(body).to_bytes(8) + body
    return bytes([flags, len(body)]) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


def _properties(data: bytes) -> dict[bytes, bytes]:
    """Returns what a command says of its sender, by name in small letters.

    Raises:
        ValueError: it is not written as it must be.
    """
    found: dict[bytes, bytes] = {}
    while data:
        name, data = _cut(data, data[0], 1)
        value, data = _cut(data, int.from_bytes(data[:4]), 4)
        found[name.lower()] = value
    return found


def _cut(data: bytes, size: int, begin: int) -> tuple[bytes, bytes]:
    """Returns `size` bytes from `begin` on, and what is left."""
    if len(data) < begin + size:
        raise ValueError("properties that end too early")
    return data[begin : begin + size], data[begin + size :]


def _opened(sealed: bytes, nonce: bytes, key: bytes) -> bytes:
    """Returns the plaintext of a box, or raises ValueError."""
    here = memoryview(bytearray(sealed))
    box.open_in_place(here, nonce, key)
    return bytes(here[box.TAG_BYTES :])


def _refusal(body: bytes) -> PullError:
    """Returns what to make of an ERROR: libzmq gives the status of whoever checks the keys."""
    return PullError(KEY_REFUSED if body[6:] in REFUSALS else NO_HANDSHAKE)

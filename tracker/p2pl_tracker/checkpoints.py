"""Checkpoints of update logs in a server of Valkey or Redis, which replicas of a tracker share."""

from redis import asyncio as client_of_redis

from p2pl_tracker.store import PREFIX, reached
from p2pl_tracker.witness import KEEP_S, MOST, ROOM_PARTS

# One step for all replicas: of two that were shown different logs at the same time, one is told
# what the other one keeps. What has expired is taken from the count, by the server's clock.
_PUT = """
local there = redis.call('GET', KEYS[1])
if (there or '') ~= ARGV[1] then return there or '' end
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local network = there and redis.call('GET', KEYS[3]) or ARGV[6]
local of = KEYS[2] .. ':' .. network
if not there then
  redis.call('ZREMRANGEBYSCORE', of, '-inf', now)
  local room = tonumber(ARGV[4]) - redis.call('ZCARD', KEYS[2])
  local share = math.max(1, math.floor(room / tonumber(ARGV[5])))
  if room <= 0 or redis.call('ZCARD', of) >= share then return false end
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('SET', KEYS[3], network, 'EX', ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[3], KEYS[1])
redis.call('ZADD', of, now + ARGV[3], KEYS[1])
redis.call('EXPIRE', of, ARGV[3])
return ARGV[2]
"""


class SharedCheckpoints:
    """Checkpoints that several trackers have in common, and that outlive them.

    Args:
        client: of the server.
        prefix: of all keys.
        most: of them.
    """

    def __init__(
        self, client: client_of_redis.Redis, *, prefix: str = PREFIX, most: int = MOST
    ) -> None:
        self._client, self._prefix, self._most = client, prefix.encode(), most
        self._put = client.register_script(_PUT)

    async def get(self, log: bytes) -> bytes | None:
        """Returns what is kept of a log. See `Checkpoints`."""
        async with reached():
            found = await self._client.get(self._key(log))
        return found if isinstance(found, bytes) else None

    async def put(
        self, log: bytes, before: bytes | None, value: bytes, network: str
    ) -> bytes | None:
        """Returns what is kept from now on. See `Checkpoints`."""
        key = self._key(log)
        keys = [key, self._prefix + b"checkpoints", key + b":network"]
        limits = (int(KEEP_S), self._most, ROOM_PARTS)
        async with reached():
            args: list[bytes | int] = [before or b"", value, *limits, network.encode()]
            found: bytes | None = await self._put(keys=keys, args=args)
        return found

    async def aclose(self) -> None:
        """Ends the connections."""
        await self._client.aclose()

    def _key(self, log: bytes) -> bytes:
        return self._prefix + b"checkpoint:" + log.hex().encode()

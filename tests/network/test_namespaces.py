"""The internet that tests make: who can dial whom there, and who is seen as whom."""

import socket

import pytest
from support import namespaces
from support.namespaces import Host


@pytest.fixture(autouse=True)
def _needed() -> None:
    namespaces.needed()


def seen_as(caller: Host, callee: Host, port: int = 4_000) -> str:
    """Returns the address that `caller` has for `callee`; why not, where it cannot connect."""
    with callee.entered():
        listener = socket.create_server((callee.address, port))
    with listener, caller.entered():
        try:
            with socket.create_connection((callee.address, port), timeout=5):
                connection, (host, _) = listener.accept()
                connection.close()
                return str(host)
        except OSError as fault:
            return type(fault).__name__


def test_who_is_behind_nat_can_dial_out_and_nobody_can_dial_in() -> None:
    with namespaces.internet() as net:
        public, home, office = net.host(), net.nat(), net.nat()
        one, other = home.host(), office.host()
        assert one.address == other.address == "192.168.1.2"
        assert (seen_as(one, public), seen_as(other, public)) == ("192.0.2.3", "192.0.2.4")
        assert seen_as(public, one) == "OSError"  # there is no route to a private address
        assert seen_as(home.host(), one) == "192.168.1.3"


def test_a_firewall_lets_one_port_out() -> None:
    with namespaces.internet() as net:
        public, peer = net.host(), net.nat(only_port=443).host()
        assert seen_as(peer, public, 443) == "192.0.2.3"
        assert seen_as(peer, public) in ("PermissionError", "OSError", "TimeoutError")

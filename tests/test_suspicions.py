"""Which blobs deserve another look, because a client asks for them again."""

import pytest

from mirror.names import Digest
from mirror.proxy import suspicions
from mirror.proxy.suspicions import Suspicions

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


class Wanted(list[Digest]):
    def check_soon(self, digest: Digest) -> bool:
        self.append(digest)
        return True


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


def test_one_that_a_client_had_whole_before(wanted: Wanted) -> None:
    noted = Suspicions(wanted.check_soon)
    noted.note_given(ONE, "10.0.0.1")
    noted.note_given(ONE, "10.0.0.2")
    noted.note_given(TWO, "10.0.0.1")
    assert wanted == []
    noted.note_given(ONE, "10.0.0.1")
    assert wanted == [ONE]


def test_it_is_checked_once_however_often_it_is_asked_for(wanted: Wanted) -> None:
    noted = Suspicions(wanted.check_soon)
    for _ in range(5):
        noted.note_given(ONE, "10.0.0.1")
    assert wanted == [ONE]


def test_after_a_while_asking_again_means_nothing(
    wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspicions, "AGAIN_WITHIN_SECONDS", -1)
    noted = Suspicions(wanted.check_soon)
    for _ in range(3):
        noted.note_given(ONE, "10.0.0.1")
    assert wanted == []

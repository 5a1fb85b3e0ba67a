"""Copying: what is stored comes back to the byte, also in chains, after deletions, and after being killed anywhere."""

import asyncio
import itertools
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backups.shelf import CHUNK, KEY, Copy, Disk, Killed, Shelf, chain, keep, place, quiet, rebuilt, restored
from vpsd.backups.copying import chunk_numbers, contents, everything, store
from vpsd.backups.targets import Missing, TargetFull
from vpsd.backups.vault import CHUNK_BYTES, Vault
from vpsd.backups.work import AT_ONCE, in_order, in_thread
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import Copied, Run


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture(params=[None, KEY], ids=["plain", "sealed"])
def vault(request: pytest.FixtureRequest, shelf: Shelf) -> Vault:
    return Vault(shelf, "0a1b2c3d", request.param, CHUNK)


_WRITES = st.lists(
    st.tuples(st.integers(0, CHUNK * 5), st.integers(1, CHUNK * 2), st.sampled_from([0, 0, 1, 7])), max_size=4
)
_BACKUPS = st.lists(st.tuples(_WRITES, st.sampled_from([0, 0, 1, CHUNK + 3]), st.booleans()), min_size=1, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(size=st.integers(0, CHUNK * 4), backups=_BACKUPS, chance=st.randoms(use_true_random=False), sealed=st.booleans())
def test_any_chain_comes_back_to_the_byte_whatever_is_deleted(
    size: int, backups: list[tuple[list[tuple[int, int, int]], int, bool]], chance: object, sealed: bool
) -> None:
    shelf = Shelf()
    vault = Vault(shelf, "0a1b2c3d", KEY if sealed else None, CHUNK)

    async def live() -> None:
        disk, held = Disk(size), dict[int, bytes]()
        for number, (writes, more, whole) in enumerate(backups):
            disk.grow(more)
            for offset, length, byte in writes:
                disk.write(offset, bytes([byte]) * length)
            parent = None if whole or not number else place(number - 1)
            copy = disk.copy(whole=parent is None)
            await keep(vault, place(number), copy, parent)
            held[number] = copy.content
        order = list(held)
        chance.shuffle(order)  # type: ignore[attr-defined]
        for number in order:
            for left, content in held.items():
                assert await restored(vault, place(left)) == content
            del held[number]
            await vault.discard(place(number), [place(left) for left in held])
        assert shelf.objects == {}

    asyncio.run(live())


async def test_what_was_stored_is_told(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK * 4 + 1)
    disk.write(0, b"a" * CHUNK + b"b" * CHUNK)
    disk.write(CHUNK * 4, b"c")
    first = await keep(vault, place(0), disk.copy(whole=True))
    assert (first.chunks, first.data_bytes, first.new_bytes) == (3, CHUNK * 2 + 1, CHUNK * 2 + 1)
    assert first.sent_bytes == sum(len(data) for key, data in shelf.objects.items() if not key.endswith("manifest"))
    disk.write(5, b"x")
    second = await keep(vault, place(1), disk.copy(whole=False), place(0))
    assert (second.chunks, second.data_bytes, second.new_bytes) == (3, CHUNK * 2 + 1, CHUNK)
    manifest = await vault.read_manifest(place(1))
    assert (manifest.size_bytes, manifest.chunk_bytes, manifest.created_at_ms) == (
        CHUNK * 4 + 1,
        CHUNK,
        1_750_000_000_000,
    )
    assert manifest.facts == {"os": "debian-13"}
    assert chunk_numbers(manifest) == [0, 1, 4]
    assert manifest.owners == [place(1).backup, place(0).backup]


async def test_an_empty_disk_and_one_of_zeros_need_no_chunk(vault: Vault, shelf: Shelf) -> None:
    for number, size in enumerate((0, CHUNK * 3 + 7)):
        stored = await keep(vault, place(number), Disk(size).copy(whole=True))
        assert (stored.chunks, stored.sent_bytes) == (0, 0)
        assert await restored(vault, place(number)) == bytes(size)
    assert {key.rpartition("/")[2] for key in shelf.objects} == {"manifest"}


async def test_zeros_that_a_run_calls_data_are_no_chunk(vault: Vault) -> None:
    copied = Copied(CHUNK * 2, (Run(0, CHUNK * 2),))
    stored = await keep(vault, place(0), Copy(bytes(CHUNK * 2), copied))
    assert stored.chunks == 0


async def test_what_lies_between_two_runs_of_a_chunk_stays_as_in_the_parent(vault: Vault) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"p" * CHUNK)
    await keep(vault, place(0), disk.copy(whole=True))
    disk.write(3, b"x")
    disk.write(20, bytes(4))
    disk.write(60, b"y")
    copy = disk.copy(whole=False)
    assert [(run.offset, run.zero) for run in copy.copied.runs] == [(3, False), (20, True), (60, False)]
    await keep(vault, place(1), copy, place(0))
    assert await restored(vault, place(1)) == bytes(disk.content)


async def test_a_chunk_that_is_written_anew_with_what_it_had_is_not_sent_again(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK * 2)
    disk.write(0, b"p" * CHUNK * 2)
    await keep(vault, place(0), disk.copy(whole=True))
    disk.write(0, b"p" * CHUNK)
    stored = await keep(vault, place(1), disk.copy(whole=False), place(0))
    assert (stored.new_bytes, stored.sent_bytes) == (0, 0)
    assert (await vault.read_manifest(place(1))).owners == [place(0).backup]


async def test_chunks_that_are_alike_are_sent_once(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK * 20)
    disk.write(0, b"p" * CHUNK * 20)
    await keep(vault, place(0), disk.copy(whole=True))
    assert len(shelf.puts) == 2  # the chunk and the manifest


async def test_a_chunk_that_is_written_whole_does_not_need_the_parents(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK + 5)
    disk.write(0, b"p" * (CHUNK + 5))
    await keep(vault, place(0), disk.copy(whole=True))
    disk.write(0, b"q" * (CHUNK + 5))
    shelf.reads.clear()
    await keep(vault, place(1), disk.copy(whole=False), place(0))
    assert [key.rpartition("/")[2] for key in shelf.reads] == ["manifest"]


async def test_a_disk_that_grew_has_zeros_where_the_parent_has_nothing(vault: Vault) -> None:
    disk = Disk(CHUNK + 5)
    disk.write(0, b"p" * (CHUNK + 5))
    await keep(vault, place(0), disk.copy(whole=True))
    disk.grow(CHUNK * 2)
    disk.write(CHUNK + 9, b"x")
    disk.write(CHUNK * 2 + 1, b"y")
    await keep(vault, place(1), disk.copy(whole=False), place(0))
    assert await restored(vault, place(1)) == bytes(disk.content)


async def test_of_five_in_a_chain_the_middle_one_goes_and_the_others_stay_whole(vault: Vault, shelf: Shelf) -> None:
    held = await chain(vault, 5)
    await vault.discard(place(2), [place(number) for number in (0, 1, 3, 4)])
    assert shelf.manifests() == {place(number).backup for number in (0, 1, 3, 4)}
    for number in (0, 1, 3, 4):
        assert await restored(vault, place(number)) == held[number]
        await vault.verify(place(number))
    for number in (0, 1, 3, 4):
        await vault.discard(place(number), [place(left) for left in (0, 1, 3, 4) if left > number])
    assert shelf.objects == {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_in_whatever_order_a_chain_is_deleted_what_is_left_stays_whole(order: tuple[int, ...]) -> None:
    shelf = Shelf()
    vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
    held = await chain(vault, 4)
    for number in order:
        del held[number]
        await vault.discard(place(number), [place(left) for left in held])
        for left, content in held.items():
            assert await restored(vault, place(left)) == content
    assert shelf.objects == {}


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_killed_at_every_step_it_goes_on_and_sends_only_what_is_missing(dies: str) -> None:
    disk = Disk(CHUNK * 12)
    for number in range(12):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    first = disk.copy(whole=True)
    disk.write(CHUNK * 2 + 3, random.Random(1).randbytes(CHUNK * 8))
    second = disk.copy(whole=False)
    for step in itertools.count(1):
        shelf = Shelf()
        vault = Vault(shelf, "0a1b2c3d", KEY, CHUNK)
        await keep(vault, place(0), first)
        shelf.steps_left, shelf.dies = step, dies  # type: ignore[assignment]
        try:
            await keep(vault, place(1), second, place(0))
        except Killed:
            pass
        else:
            assert step > 12
            break
        shelf.steps_left = None
        if place(1).backup in shelf.manifests():
            assert await restored(vault, place(1)) == second.content
        lying = set(shelf.objects)
        shelf.puts.clear()
        await keep(vault, place(1), second, place(0))
        assert not {key for key in shelf.puts if not key.endswith("/manifest")} & lying
        assert await restored(vault, place(1)) == second.content
        await vault.discard(place(1), [place(0)])
        assert await restored(vault, place(0)) == first.content
        await vault.discard(place(0), [])
        assert shelf.objects == {}


async def test_what_an_earlier_try_sent_of_another_copy_does_not_stay(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK * 8)
    disk.write(0, bytes(range(1, 9)) * CHUNK)
    for number in range(8):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    shelf.steps_left = 7
    with pytest.raises(Killed):
        await keep(vault, place(0), disk.copy(whole=True))
    lying = await _own(shelf)
    assert lying
    shelf.steps_left = None
    disk.write(0, b"another" * 100)
    await keep(vault, place(0), disk.copy(whole=True))
    manifest = await vault.read_manifest(place(0))
    assert {digest for _, digest in manifest.named()} == await _own(shelf)
    assert await restored(vault, place(0)) == bytes(disk.content)


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_storing_another_copy_over_a_whole_backup_leaves_it_whole_whenever_it_is_killed(dies: str) -> None:
    disk = Disk(CHUNK * 3)
    disk.write(0, b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK)
    first = disk.copy(whole=True)
    disk.write(0, b"d" * CHUNK + b"e" * CHUNK)
    second = disk.copy(whole=True)
    for step in itertools.count(1):
        shelf = Shelf()
        vault = Vault(shelf, "0a1b2c3d", None, CHUNK)
        await keep(vault, place(0), first)
        shelf.steps_left, shelf.dies = step, dies  # type: ignore[assignment]
        try:
            await keep(vault, place(0), second)
        except Killed:
            shelf.steps_left = None
            assert await restored(vault, place(0)) in (first.content, second.content)
        else:
            break
    assert step > 5


async def _own(shelf: Shelf) -> set[str]:
    return {key.rpartition("/")[2] for key in shelf.objects} - {"manifest"}


async def test_a_target_that_gets_full_leaves_no_manifest_and_discarding_leaves_nothing(
    vault: Vault, shelf: Shelf
) -> None:
    disk = Disk(CHUNK * 20)
    for number in range(20):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    shelf.steps_left, shelf.failure = 9, TargetFull("shelf is full")
    with pytest.raises(TargetFull, match="shelf is full"):
        await keep(vault, place(0), disk.copy(whole=True))
    shelf.steps_left = None
    assert shelf.objects
    assert shelf.manifests() == set()
    with pytest.raises(Missing, match="not whole"):
        await vault.read_manifest(place(0))
    await vault.discard(place(0), [])
    assert shelf.objects == {}


async def test_a_parent_that_is_gone_or_damaged_is_told_before_anything_is_sent(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"p")
    with pytest.raises(Missing, match=place(0).backup):
        await keep(vault, place(1), disk.copy(whole=True), place(0))
    await keep(vault, place(0), disk.copy(whole=True))
    with pytest.raises(Unusable, match="built upon"):
        await keep(Vault(shelf, "0a1b2c3d", vault._key, CHUNK * 2), place(1), disk.copy(whole=True), place(0))
    with pytest.raises(Unusable, match="built upon"):
        await keep(vault, place(1), Disk(CHUNK - 1).copy(whole=True), place(0))
    assert shelf.manifests() == {place(0).backup}


async def test_a_copy_that_gives_too_little_is_not_stored(vault: Vault, shelf: Shelf) -> None:
    async def read(offset: int, length: int) -> bytes:
        return b"x" * (length - 1)

    with pytest.raises(Unavailable, match=f"{CHUNK - 1} bytes instead of {CHUNK}"):
        await store(vault, place(0), Copied(CHUNK, (Run(0, CHUNK),)), read, None, {}, 0, quiet)
    assert shelf.objects == {}


async def test_progress_goes_up_to_the_end(vault: Vault) -> None:
    told: list[float] = []
    disk = Disk(CHUNK * 8)
    for number in range(8):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    copy = disk.copy(whole=True)
    await store(vault, place(0), copy.copied, copy.read, None, {}, 0, lambda fraction, _: told.append(fraction))
    assert told == [number / 8 for number in range(1, 9)]
    told.clear()
    manifest = await vault.read_manifest(place(0))
    chunks = [chunk async for chunk in contents(vault, manifest, lambda fraction, _: told.append(fraction))]
    assert (len(chunks), told) == (8, [number / 8 for number in range(1, 9)])


async def test_a_few_chunks_are_under_way_at_once_and_no_more_and_none_after_it_was_called_off(
    vault: Vault, shelf: Shelf
) -> None:
    reading = 0
    enough, never = asyncio.Event(), asyncio.Event()

    async def read(offset: int, length: int) -> bytes:
        nonlocal reading
        reading += 1
        if reading == AT_ONCE:
            enough.set()
        await never.wait()
        return bytes(length)

    before = asyncio.all_tasks()
    storing = asyncio.create_task(
        store(vault, place(0), Copied(CHUNK * 20, (Run(0, CHUNK * 20),)), read, None, {}, 0, quiet)
    )
    await enough.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert reading == AT_ONCE
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert asyncio.all_tasks() == before
    assert shelf.objects == {}


async def test_a_restore_that_is_closed_early_reads_no_further(vault: Vault, shelf: Shelf) -> None:
    disk = Disk(CHUNK * 20)
    for number in range(20):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    await keep(vault, place(0), disk.copy(whole=True))
    manifest = await vault.read_manifest(place(0))
    before = asyncio.all_tasks()
    shelf.reads.clear()
    chunks = contents(vault, manifest, quiet)
    assert await anext(chunks) == b"\x01" * CHUNK
    await chunks.aclose()
    assert asyncio.all_tasks() == before
    assert len(shelf.reads) <= AT_ONCE


async def test_who_is_called_off_waits_for_what_is_being_sent() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def send() -> None:
        begun.set()
        go_on.wait()
        done.append("sent")

    task = asyncio.create_task(in_thread(send))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["sent"]


async def test_what_runs_beside_one_that_failed_has_ended_when_that_is_told() -> None:
    begun, go_on = threading.Event(), threading.Event()
    fail = asyncio.Event()

    def send() -> None:
        begun.set()
        go_on.wait()

    async def work(item: int) -> None:
        if item:
            await in_thread(send)
        await fail.wait()
        raise Unavailable("the target went away")

    async def consume() -> None:
        async for _ in in_order(range(2), work):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(begun.wait)
    fail.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(Unavailable):
        await task


async def test_chunks_of_a_megabyte_come_back_too(shelf: Shelf) -> None:
    vault = Vault(shelf, "0a1b2c3d", KEY)
    assert vault.chunk_bytes == CHUNK_BYTES == 1024 * 1024
    content = bytes(CHUNK_BYTES) + bytes(range(256)) * 4096 + b"end"
    await keep(vault, place(0), Copy(content, Copied(len(content), (Run(0, len(content)),))))
    assert await rebuilt(vault, await vault.read_manifest(place(0))) == content


@settings(derandomize=True, deadline=None)
@given(size=st.integers(1, CHUNK * 5), writes=_WRITES, more=_WRITES)
def test_a_copy_of_everything_is_held_against_the_one_before(
    size: int, writes: list[tuple[int, int, int]], more: list[tuple[int, int, int]]
) -> None:
    async def live() -> None:
        shelf = Shelf()
        vault, disk = Vault(shelf, "0a1b2c3d", None, CHUNK), Disk(size)
        for number, changes in enumerate((writes, more)):
            for offset, length, byte in changes:
                disk.write(offset, bytes([byte]) * length)
            copy = disk.copy(whole=True)
            copy.copied = everything(copy.copied)
            covered = [(run.offset, run.offset + run.length) for run in copy.copied.runs]
            assert [start for start, _ in covered] == [0, *(end for _, end in covered[:-1])]
            assert covered[-1][1] == size
            before = len(shelf.objects)
            await keep(vault, place(number), copy, place(number - 1) if number else None)
            assert await restored(vault, place(number)) == copy.content
            if number and not more:
                assert len(shelf.objects) == before + 1  # its manifest

    asyncio.run(live())

"""Copying: what is stored comes back to the byte, also in chains, after deletions, and after being killed anywhere."""

import asyncio
import itertools
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backups.recording_target import (
    CHUNK,
    KEY,
    Copy,
    Disk,
    RecordingTarget,
    backup_ref,
    chain,
    keep,
    quiet,
    rebuilt,
    restored,
)
from tests.killed import Killed
from vpsd.backups.concurrency import MAX_IN_FLIGHT, map_ordered, run_in_thread
from vpsd.backups.repository import CHUNK_BYTES, Damaged, Repository
from vpsd.backups.targets import MARK, Missing, TargetFull, TargetNotThere
from vpsd.backups.transfer import StoreResult, chunk_numbers, fill_gaps, store, stream_contents
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.protocol import BlockMap, Extent


@pytest.fixture
def target() -> RecordingTarget:
    return RecordingTarget()


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def repository(request: pytest.FixtureRequest, target: RecordingTarget) -> Repository:
    return Repository(target, "0a1b2c3d", request.param, CHUNK)


_WRITES = st.lists(
    st.tuples(st.integers(0, CHUNK * 5), st.integers(1, CHUNK * 2), st.sampled_from([0, 0, 1, 7])), max_size=4
)
_BACKUPS = st.lists(st.tuples(_WRITES, st.sampled_from([0, 0, 1, CHUNK + 3]), st.booleans()), min_size=1, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    size=st.integers(0, CHUNK * 4), backups=_BACKUPS, chance=st.randoms(use_true_random=False), encrypted=st.booleans()
)
def test_any_chain_comes_back_to_the_byte_whatever_is_deleted(
    size: int, backups: list[tuple[list[tuple[int, int, int]], int, bool]], chance: object, encrypted: bool
) -> None:
    target = RecordingTarget()
    repository = Repository(target, "0a1b2c3d", KEY if encrypted else None, CHUNK)

    async def live() -> None:
        disk, held = Disk(size), dict[int, bytes]()
        for number, (writes, more, whole) in enumerate(backups):
            disk.grow(more)
            for offset, length, byte in writes:
                disk.write(offset, bytes([byte]) * length)
            parent = None if whole or not number else backup_ref(number - 1)
            copy = disk.copy(whole=parent is None)
            await keep(repository, backup_ref(number), copy, parent)
            held[number] = copy.content
        order = list(held)
        chance.shuffle(order)  # type: ignore[attr-defined]
        for number in order:
            for left, content in held.items():
                assert await restored(repository, backup_ref(left)) == content
            del held[number]
            await repository.discard(backup_ref(number), [backup_ref(left) for left in held])
        assert target.objects == {}

    asyncio.run(live())


async def test_what_was_stored_is_told(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK * 4 + 1)
    disk.write(0, b"a" * CHUNK + b"b" * CHUNK)
    disk.write(CHUNK * 4, b"c")
    first = await keep(repository, backup_ref(0), disk.copy(whole=True))
    assert (first.chunks, first.data_bytes, len(await repository.own_chunks(backup_ref(0)))) == (3, CHUNK * 2 + 1, 3)
    assert first.sent_bytes == sum(len(data) for key, data in target.objects.items() if not key.endswith("manifest"))
    disk.write(5, b"x")
    second = await keep(repository, backup_ref(1), disk.copy(whole=False), backup_ref(0))
    assert (second.chunks, second.data_bytes, len(await repository.own_chunks(backup_ref(1)))) == (3, CHUNK * 2 + 1, 1)
    manifest = await repository.read_manifest(backup_ref(1))
    assert (manifest.size_bytes, manifest.chunk_bytes, manifest.created_at_ms) == (
        CHUNK * 4 + 1,
        CHUNK,
        1_750_000_000_000,
    )
    assert manifest.facts == {"os": "debian-13"}
    assert chunk_numbers(manifest) == [0, 1, 4]
    assert manifest.owners == [backup_ref(1).backup, backup_ref(0).backup]


async def test_an_empty_disk_and_one_of_zeros_need_no_chunk(repository: Repository, target: RecordingTarget) -> None:
    for number, size in enumerate((0, CHUNK * 3 + 7)):
        stored = await keep(repository, backup_ref(number), Disk(size).copy(whole=True))
        assert (stored.chunks, stored.sent_bytes) == (0, 0)
        assert await restored(repository, backup_ref(number)) == bytes(size)
    assert {key.rpartition("/")[2] for key in target.objects} == {"manifest"}


async def test_zeros_that_a_run_calls_data_are_no_chunk(repository: Repository) -> None:
    block_map = BlockMap(CHUNK * 2, (Extent(0, CHUNK * 2),))
    stored = await keep(repository, backup_ref(0), Copy(bytes(CHUNK * 2), block_map))
    assert stored.chunks == 0


async def test_what_lies_between_two_runs_of_a_chunk_stays_as_in_the_parent(repository: Repository) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"p" * CHUNK)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    disk.write(3, b"x")
    disk.write(20, bytes(4))
    disk.write(60, b"y")
    copy = disk.copy(whole=False)
    assert [(extent.offset, extent.zero) for extent in copy.block_map.extents] == [(3, False), (20, True), (60, False)]
    await keep(repository, backup_ref(1), copy, backup_ref(0))
    assert await restored(repository, backup_ref(1)) == bytes(disk.content)


async def test_a_chunk_that_is_written_anew_with_what_it_had_is_not_sent_again(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK * 2)
    disk.write(0, b"p" * CHUNK * 2)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    disk.write(0, b"p" * CHUNK)
    stored = await keep(repository, backup_ref(1), disk.copy(whole=False), backup_ref(0))
    assert (await repository.own_chunks(backup_ref(1)), stored.sent_bytes) == (set(), 0)
    assert (await repository.read_manifest(backup_ref(1))).owners == [backup_ref(0).backup]


async def test_chunks_that_are_alike_are_sent_once(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK * 20)
    disk.write(0, b"p" * CHUNK * 20)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    assert len(target.puts) == 2  # the chunk and the manifest


async def test_a_chunk_that_is_written_whole_does_not_need_the_parents(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK + 5)
    disk.write(0, b"p" * (CHUNK + 5))
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    disk.write(0, b"q" * (CHUNK + 5))
    target.reads.clear()
    await keep(repository, backup_ref(1), disk.copy(whole=False), backup_ref(0))
    assert [key.rpartition("/")[2] for key in target.reads] == ["manifest"]


async def test_a_disk_that_grew_has_zeros_where_the_parent_has_nothing(repository: Repository) -> None:
    disk = Disk(CHUNK + 5)
    disk.write(0, b"p" * (CHUNK + 5))
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    disk.grow(CHUNK * 2)
    disk.write(CHUNK + 9, b"x")
    disk.write(CHUNK * 2 + 1, b"y")
    await keep(repository, backup_ref(1), disk.copy(whole=False), backup_ref(0))
    assert await restored(repository, backup_ref(1)) == bytes(disk.content)


async def test_of_five_in_a_chain_the_middle_one_goes_and_the_others_stay_whole(
    repository: Repository, target: RecordingTarget
) -> None:
    held = await chain(repository, 5)
    await repository.discard(backup_ref(2), [backup_ref(number) for number in (0, 1, 3, 4)])
    assert target.manifests() == {backup_ref(number).backup for number in (0, 1, 3, 4)}
    for number in (0, 1, 3, 4):
        assert await restored(repository, backup_ref(number)) == held[number]
        await repository.verify(backup_ref(number))
    for number in (0, 1, 3, 4):
        await repository.discard(backup_ref(number), [backup_ref(left) for left in (0, 1, 3, 4) if left > number])
    assert target.objects == {}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_in_whatever_order_a_chain_is_deleted_what_is_left_stays_whole(order: tuple[int, ...]) -> None:
    target = RecordingTarget()
    repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
    held = await chain(repository, 4)
    for number in order:
        del held[number]
        await repository.discard(backup_ref(number), [backup_ref(left) for left in held])
        for left, content in held.items():
            assert await restored(repository, backup_ref(left)) == content
    assert target.objects == {}


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_killed_at_every_step_it_goes_on_and_sends_only_what_is_missing(dies: str) -> None:
    disk = Disk(CHUNK * 12)
    for number in range(12):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    first = disk.copy(whole=True)
    disk.write(CHUNK * 2 + 3, random.Random(1).randbytes(CHUNK * 8))
    second = disk.copy(whole=False)
    for step in itertools.count(1):
        target = RecordingTarget()
        repository = Repository(target, "0a1b2c3d", KEY, CHUNK)
        await keep(repository, backup_ref(0), first)
        target.steps_left, target.dies = step, dies  # type: ignore[assignment]
        try:
            await keep(repository, backup_ref(1), second, backup_ref(0))
        except Killed:
            pass
        else:
            assert step > 12
            break
        target.steps_left = None
        if backup_ref(1).backup in target.manifests():
            assert await restored(repository, backup_ref(1)) == second.content
        lying = set(target.objects)
        target.puts.clear()
        await keep(repository, backup_ref(1), second, backup_ref(0))
        assert not {key for key in target.puts if not key.endswith("/manifest")} & lying
        assert await restored(repository, backup_ref(1)) == second.content
        await repository.discard(backup_ref(1), [backup_ref(0)])
        assert await restored(repository, backup_ref(0)) == first.content
        await repository.discard(backup_ref(0), [])
        assert target.objects == {}


async def test_what_an_earlier_try_sent_of_another_copy_does_not_stay(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK * 8)
    disk.write(0, bytes(range(1, 9)) * CHUNK)
    for number in range(8):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    target.steps_left = 7
    with pytest.raises(Killed):
        await keep(repository, backup_ref(0), disk.copy(whole=True))
    lying = await _own(target)
    assert lying
    target.steps_left = None
    disk.write(0, b"another" * 100)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    manifest = await repository.read_manifest(backup_ref(0))
    assert {digest for _, digest in manifest.referenced_chunks()} == await _own(target)
    assert await restored(repository, backup_ref(0)) == bytes(disk.content)


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_storing_another_copy_over_a_whole_backup_leaves_it_whole_whenever_it_is_killed(dies: str) -> None:
    disk = Disk(CHUNK * 3)
    disk.write(0, b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK)
    first = disk.copy(whole=True)
    disk.write(0, b"d" * CHUNK + b"e" * CHUNK)
    second = disk.copy(whole=True)
    for step in itertools.count(1):
        target = RecordingTarget()
        repository = Repository(target, "0a1b2c3d", None, CHUNK)
        await keep(repository, backup_ref(0), first)
        target.steps_left, target.dies = step, dies  # type: ignore[assignment]
        try:
            await keep(repository, backup_ref(0), second)
        except Killed:
            target.steps_left = None
            assert await restored(repository, backup_ref(0)) in (first.content, second.content)
        else:
            break
    assert step > 5


async def _own(target: RecordingTarget) -> set[str]:
    return {key.rpartition("/")[2] for key in target.objects} - {"manifest"}


async def test_a_target_that_gets_full_leaves_no_manifest_and_discarding_leaves_nothing(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK * 20)
    for number in range(20):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    target.steps_left, target.failure = 9, TargetFull("target is full")
    with pytest.raises(TargetFull, match="target is full"):
        await keep(repository, backup_ref(0), disk.copy(whole=True))
    target.steps_left = None
    assert target.objects
    assert target.manifests() == set()
    with pytest.raises(Missing, match="incomplete"):
        await repository.read_manifest(backup_ref(0))
    await repository.discard(backup_ref(0), [])
    assert target.objects == {}


async def test_a_parent_that_is_gone_or_damaged_is_told_before_anything_is_sent(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK)
    disk.write(0, b"p")
    with pytest.raises(Missing, match=backup_ref(0).backup):
        await keep(repository, backup_ref(1), disk.copy(whole=True), backup_ref(0))
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    with pytest.raises(Unusable, match="cannot be the parent"):
        await keep(
            Repository(target, "0a1b2c3d", repository._key, CHUNK * 2),
            backup_ref(1),
            disk.copy(whole=True),
            backup_ref(0),
        )
    with pytest.raises(Unusable, match="cannot be the parent"):
        await keep(repository, backup_ref(1), Disk(CHUNK - 1).copy(whole=True), backup_ref(0))
    assert target.manifests() == {backup_ref(0).backup}


async def test_a_copy_that_gives_too_little_is_not_stored(repository: Repository, target: RecordingTarget) -> None:
    async def read(offset: int, length: int) -> bytes:
        return b"x" * (length - 1)

    with pytest.raises(Unavailable, match=f"{CHUNK - 1} bytes instead of {CHUNK}"):
        await store(repository, backup_ref(0), BlockMap(CHUNK, (Extent(0, CHUNK),)), read, None, {}, 0, quiet)
    assert target.objects == {}


async def test_progress_goes_up_to_the_end(repository: Repository) -> None:
    told: list[float] = []
    disk = Disk(CHUNK * 8)
    for number in range(8):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    copy = disk.copy(whole=True)
    await store(
        repository, backup_ref(0), copy.block_map, copy.read, None, {}, 0, lambda fraction, _: told.append(fraction)
    )
    assert told == [number / 8 for number in range(1, 9)]
    told.clear()
    manifest = await repository.read_manifest(backup_ref(0))
    chunks = [chunk async for chunk in stream_contents(repository, manifest, lambda fraction, _: told.append(fraction))]
    assert (len(chunks), told) == (8, [number / 8 for number in range(1, 9)])


async def test_a_few_chunks_are_under_way_at_once_and_no_more_and_none_after_it_was_called_off(
    repository: Repository, target: RecordingTarget
) -> None:
    reading = 0
    enough, never = asyncio.Event(), asyncio.Event()

    async def read(offset: int, length: int) -> bytes:
        nonlocal reading
        reading += 1
        if reading == MAX_IN_FLIGHT:
            enough.set()
        await never.wait()
        return bytes(length)

    before = asyncio.all_tasks()
    storing = asyncio.create_task(
        store(repository, backup_ref(0), BlockMap(CHUNK * 20, (Extent(0, CHUNK * 20),)), read, None, {}, 0, quiet)
    )
    await enough.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert reading == MAX_IN_FLIGHT
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert asyncio.all_tasks() == before
    assert target.objects == {}


async def test_a_restore_that_is_closed_early_reads_no_further(repository: Repository, target: RecordingTarget) -> None:
    disk = Disk(CHUNK * 20)
    for number in range(20):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    manifest = await repository.read_manifest(backup_ref(0))
    before = asyncio.all_tasks()
    target.reads.clear()
    chunks = stream_contents(repository, manifest, quiet)
    assert await anext(chunks) == b"\x01" * CHUNK
    await chunks.aclose()
    assert asyncio.all_tasks() == before
    assert len(target.reads) <= MAX_IN_FLIGHT


async def test_who_is_called_off_waits_for_what_is_being_sent() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def send() -> None:
        begun.set()
        go_on.wait()
        done.append("sent")

    task = asyncio.create_task(run_in_thread(send))
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
            await run_in_thread(send)
        await fail.wait()
        raise Unavailable("the target went away")

    async def consume() -> None:
        async for _ in map_ordered(range(2), work):
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


async def test_chunks_of_a_megabyte_come_back_too(target: RecordingTarget) -> None:
    repository = Repository(target, "0a1b2c3d", KEY)
    assert repository.chunk_bytes == CHUNK_BYTES == 1024 * 1024
    content = bytes(CHUNK_BYTES) + bytes(range(256)) * 4096 + b"end"
    await keep(repository, backup_ref(0), Copy(content, BlockMap(len(content), (Extent(0, len(content)),))))
    assert await rebuilt(repository, await repository.read_manifest(backup_ref(0))) == content


@settings(derandomize=True, deadline=None)
@given(size=st.integers(1, CHUNK * 5), writes=_WRITES, more=_WRITES)
def test_a_copy_of_everything_is_held_against_the_one_before(
    size: int, writes: list[tuple[int, int, int]], more: list[tuple[int, int, int]]
) -> None:
    async def live() -> None:
        target = RecordingTarget()
        repository, disk = Repository(target, "0a1b2c3d", None, CHUNK), Disk(size)
        for number, changes in enumerate((writes, more)):
            for offset, length, byte in changes:
                disk.write(offset, bytes([byte]) * length)
            copy = disk.copy(whole=True)
            copy.block_map = fill_gaps(copy.block_map)
            covered = [(extent.offset, extent.offset + extent.length) for extent in copy.block_map.extents]
            assert [start for start, _ in covered] == [0, *(end for _, end in covered[:-1])]
            assert covered[-1][1] == size
            before = len(target.objects)
            await keep(repository, backup_ref(number), copy, backup_ref(number - 1) if number else None)
            assert await restored(repository, backup_ref(number)) == copy.content
            if number and not more:
                assert len(target.objects) == before + 1  # its manifest

    asyncio.run(live())


async def test_little_is_written_beside_a_target_that_goes_away(target: RecordingTarget) -> None:
    repository, disk = Repository(target, "0a1b2c3d", None, CHUNK), Disk(CHUNK * 300)
    disk.write(0, random.Random(1).randbytes(CHUNK * 300))
    copy, mark = disk.copy(whole=True), "11111111-1111-4111-8111-111111111111"

    async def read(offset: int, length: int) -> bytes:
        target.objects.pop(MARK, None)
        return await copy.read(offset, length)

    await repository.put_mark(mark)
    with pytest.raises(TargetNotThere):
        await store(repository, backup_ref(0), copy.block_map, read, None, {}, 1, quiet, mark)
    assert len(target.objects) <= 64 + MAX_IN_FLIGHT
    await repository.put_mark(mark)
    await store(repository, backup_ref(0), copy.block_map, copy.read, None, {}, 1, quiet, mark)
    assert await restored(repository, backup_ref(0)) == copy.content


async def test_what_is_damaged_is_stored_anew_where_it_is_or_nothing_is_completed(
    repository: Repository, target: RecordingTarget
) -> None:
    disk = Disk(CHUNK * 3)
    for number in range(3):
        disk.write(CHUNK * number, bytes([number + 1]) * CHUNK)
    await keep(repository, backup_ref(0), disk.copy(whole=True))
    chunks = (await repository.read_manifest(backup_ref(0))).chunks
    damaged = [(backup_ref(0).backup, chunk[1]) for chunk in chunks[:2] if chunk is not None]
    key = next(key for key in target.objects if key.endswith(damaged[1][1]))
    target.objects[key] = b""
    disk.write(0, b"new")  # the first of the two is not on the disk any more

    async def again(number: int, *, whole: bool) -> StoreResult:
        copy, parent = disk.copy(whole=whole), backup_ref(0)
        args = (repository, backup_ref(number), copy.block_map, copy.read, parent)
        return await store(*args, {}, 0, quiet, damaged=frozenset(damaged))

    with pytest.raises(Damaged, match="in what was not copied again"):
        await again(1, whole=False)
    assert target.manifests() == {backup_ref(0).backup}
    assert (await again(2, whole=True)).stored_anew == {damaged[1]}
    assert await restored(repository, backup_ref(2)) == bytes(disk.content)
    assert (await repository.verify(backup_ref(0))).chunks == 3

"""Long work on the loop lets others run in between."""

import asyncio

from kdns.dns.name import from_text
from kdns.store.trie import Store
from kdns.timeslice import emptied


def test_a_large_table_is_freed_in_slices_and_others_run_in_between() -> None:
    store = Store()
    for i in range(20_000):
        store.add(from_text(f"h{i}.example.org."))
    table = dict.fromkeys(range(100_000))
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    async def both() -> None:
        task = asyncio.create_task(other())
        await emptied(table, {}, store)
        task.cancel()

    asyncio.run(both())
    assert not table and not len(store) and not store.root.children
    assert others > 5

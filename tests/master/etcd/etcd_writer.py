"""A process that writes to a store until it is killed, and says on stdout what was acknowledged.

python etcd_writer.py FILE SEED: writers on a few keys each, one line "key value revision" an acknowledged write.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from longshore.master.etcd.embedded import EmbeddedStore


async def main(path: Path, seed: str) -> None:
    store = await EmbeddedStore.open(path)
    chance = random.Random(seed)

    async def writer(number: int) -> None:
        count = 0
        while True:
            key, value = f"/w/{number}/{count % 5}", f"{seed}-{count}-" + "x" * chance.randrange(6000)
            revision = (await store.put(key.encode(), value.encode())).revision
            os.write(1, f"{key} {value[:20].split('x')[0]} {revision} {len(value)}\n".encode())
            count += 1
            if number == 0 and count % 40 == 0 and store.revision - 50 > store.compact_revision:
                await store.compact(store.revision - 50)

    os.write(1, b"ready\n")
    await asyncio.gather(*(writer(i) for i in range(8)))


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

"""Drives a paused VMM through updates with QEMU's own client, and prints the dialogue.

Arguments: the socket, the file for the state, then the command to update to.
"""

import asyncio
import json
import sys

from qemu.qmp import QMPClient

DEADLINE_SECONDS = 30


class Client(QMPClient):
    """The stock client, printing every message in wire order."""

    def __init__(self, name, shown_as=""):
        super().__init__(name)
        self._shown_as = shown_as

    def _cb_outbound(self, msg):
        print(f"{self._shown_as}->", json.dumps(dict(msg)), flush=True)
        return msg

    def _cb_inbound(self, msg):
        print(f"{self._shown_as}<-", json.dumps(dict(msg)), flush=True)
        return msg


async def begin(client, state):
    await client.execute("migrate", {
        "channels": [{
            "channel-type": "main",
            "addr": {"transport": "file", "filename": state, "offset": 0},
        }],
    })


async def update(client, state, begins=None):
    with client.listener("MIGRATION") as listener:
        await begin(begins or client, state)
        if begins:
            await begins.disconnect()
        async for event in listener:
            if event["data"]["status"] in ("completed", "failed"):
                break
    await client.execute("query-status")
    await client.execute("query-migrate")


async def session(socket, state, command):
    client = Client("stock")
    await client.connect(socket)
    await client.execute("query-status")
    await client.execute("cont")
    await client.execute("query-status")
    await client.execute("migrate-set-capabilities", {
        "capabilities": [{"capability": "events", "state": True}],
    })
    parameters = {"mode": "cpr-exec", "cpr-exec-command": command}
    await client.execute("migrate-set-parameters", parameters)
    await update(client, state)

    # The parameters do not survive the update, as in QEMU.
    await client.execute("query-migrate-parameters")
    await client.execute("migrate-set-parameters", parameters)
    await update(client, state)

    # A second client is greeted like the first, and does not affect it.
    late = Client("late", shown_as="late ")
    await late.connect(socket)
    await late.execute("query-status")
    await late.disconnect()

    # A client that disconnects during its own update does not affect it. How much of the update it
    # sees depends on timing, so it is not shown.
    await client.execute("migrate-set-parameters", parameters)
    leaver = QMPClient("leaver")
    await leaver.connect(socket)
    print("-- another client begins an update and disconnects", flush=True)
    await update(client, state, begins=leaver)

    await client.execute("stop")
    await client.execute("migrate-set-parameters", parameters)
    await update(client, state)
    await client.execute("cont")
    await client.execute("query-status")

    with client.listener("SHUTDOWN") as listener:
        await client.execute("quit")
        await listener.get()
    try:
        await client.disconnect()
    except EOFError:
        pass


async def main():
    socket, state, *command = sys.argv[1:]
    await asyncio.wait_for(session(socket, state, command), DEADLINE_SECONDS)


asyncio.run(main())

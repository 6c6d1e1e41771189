"""Executes a task's commands: three walkers over one command list, each as far ahead as it may be.

The fetcher asks memory for what commands will need, the stager keeps the loader busy with tiles, the issuer
runs the datapath. A walker that meets an expert's command waits until the issuer has done the ROUTE before it;
the fetcher goes on as soon as that ROUTE has given the expert a token, or at once where one is expected.
"""

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from patchloom.compiler.machine.config import Config
from patchloom.hw.boot import Boot
from patchloom.hw.bundles import Bases, Beats, Execution, Failure, Loading, Request, Sizes, Turn, lengths_width
from patchloom.hw.command_store import CommandStore
from patchloom.hw.fetcher import Fetcher
from patchloom.hw.issuer import Issuer
from patchloom.hw.stager import Stager


class Sequencer(wiring.Component):
    """`start` runs the commands of `task`; `done` pulses when all they wrote is in memory, a `failure` stops all.

    `sum`, in its place, makes `checksum` that of the program region, while `summing`.

    After a failure, or to abandon a task, reset the component. `stall_weights` is high while the datapath
    could go on but for the next tile, `stall_writes` while it waits for memory to take results.

    With `Config.epilogue_lanes` it need not know of parameters, but of rows that the epilogue has taken.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "sum": In(1),
                "busy": Out(1),
                "summing": Out(1),
                "checksum": Out(32),
                "done": Out(1),
                "failure": Out(Failure()),
                "task": In(8),
                "bases": In(Bases()),
                "sizes": In(Sizes()),
                "command_index": Out(16),
                "stall_weights": Out(1),
                "stall_writes": Out(1),
                # memory
                "read_request": Out(stream.Signature(Request)),
                "read_data": In(stream.Signature(config.word_width)),
                "write_request": Out(stream.Signature(Request)),
                "reader_idle": In(1),
                "reader_empty": In(1),
                "writer_idle": In(1),
                # loader
                "loader": Out(Loading()),
                "weights": Out(stream.Signature(config.word_width)),
                "tile": In(Turn()),
                **({"taken": In(1)} if config.epilogue_lanes else {"parameters": In(Turn())}),
                # what executes
                "lengths": In(lengths_width(config)),  # of the queues
                "beats": Out(Beats(config)),
                "router": Out(Execution()),
                "storer": Out(Execution()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.commands = store = CommandStore(self.config)
        m.submodules.boot = boot = Boot(self.config)
        m.submodules.issuer = issuer = Issuer(self.config)
        m.submodules.stager = stager = Stager(self.config)
        m.submodules.fetcher = fetcher = Fetcher(self.config)
        connect(m, boot.write, store.write)
        for walker, read in zip((issuer, stager, fetcher), store.reads, strict=True):
            connect(m, walker.read, read)
            m.d.comb += [walker.begun.eq(boot.begun), walker.lengths.eq(self.lengths)]
        connect(m, issuer.routes, stager.routes, fetcher.routes)
        self._lead_out(m, boot, issuer, stager, fetcher)
        m.d.comb += [
            boot.start.eq(self.start),
            boot.sum.eq(self.sum),
            self.summing.eq(boot.summing),
            self.checksum.eq(boot.checksum),
            boot.task.eq(self.task),
            boot.program_base.eq(self.bases.program),
            self.busy.eq(boot.busy),
            self.done.eq(issuer.done),
            *(unit.done.eq(issuer.done) for unit in (boot, stager, fetcher)),
            issuer.stager_index.eq(stager.index),
            issuer.fetcher_index.eq(fetcher.index),
            issuer.staged.eq(stager.ended),
            issuer.fetched.eq(fetcher.ended),
            issuer.reader_idle.eq(self.reader_idle),
            issuer.reader_empty.eq(self.reader_empty),
            issuer.writer_idle.eq(self.writer_idle),
            self.command_index.eq(issuer.index),
            self.stall_weights.eq(issuer.stall_weights),
            self.stall_writes.eq(issuer.stall_writes),
        ]
        return m

    def _lead_out(self, m: Module, boot: Boot, issuer: Issuer, stager: Stager, fetcher: Fetcher) -> None:
        """Bundles of a unit that are the sequencer's."""
        connect(m, boot.request, fetcher.boot)
        connect(m, fetcher.request, flipped(self.read_request))
        connect(m, flipped(self.read_data), boot.read_data)
        connect(m, boot.weights, flipped(self.weights))
        connect(m, flipped(self.bases), issuer.bases, fetcher.bases)
        connect(m, flipped(self.sizes), boot.sizes)
        connect(m, flipped(self.tile), issuer.tile)
        if self.config.epilogue_lanes:
            m.d.comb += issuer.taken.eq(self.taken)
        else:
            connect(m, flipped(self.parameters), issuer.parameters)
        for name in ("beats", "router", "storer", "write_request"):
            connect(m, getattr(issuer, name), flipped(getattr(self, name)))
        m.d.comb += [
            self.loader.command.eq(stager.loader.command),
            self.loader.start.eq(stager.loader.start),
            self.loader.drop.eq(stager.drop),
            self.loader.allowed.eq(issuer.allowed),
            stager.loader.busy.eq(self.loader.busy),
        ]
        for name in ("valid", "code", "detail"):
            first, other = getattr(boot.failure, name), getattr(issuer.failure, name)
            m.d.comb += getattr(self.failure, name).eq(Mux(boot.failure.valid, first, other))

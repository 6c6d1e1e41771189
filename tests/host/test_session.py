"""What a Session believes and what it refuses, on a machine that does as a test tells it."""

from gc import collect
from weakref import ref

import numpy as np
import pytest

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import ClippedWarning
from patchloom.compiler.machine.registers import REGISTERS, Access, Control, ErrorCode, Status
from patchloom.host.errors import DeadlineError, DeviceError, IdentityError, LinkError, StaleError
from patchloom.host.session import Session
from tests.host.fake import BASE, FakeDevice
from tests.host.programs import ELEMENTS, FRACTION, SHAPE, copying

CONFIG = Config()
PROGRAM = copying(CONFIG, "depth", "edges")


@pytest.fixture
def device():
    return FakeDevice(CONFIG, 2 * ELEMENTS)


@pytest.fixture
def session(device):
    return Session(device, PROGRAM)


def sample(seed=0):
    """A multiple of the format's step each: it comes back as it went in."""
    return np.random.default_rng(seed).integers(-128, 128, SHAPE) / 2**FRACTION


# --- What comes back ---


def test_values_in_the_models_units(session):
    result = session.run(sample(), task="depth")
    np.testing.assert_array_equal(result.outputs["y"], sample())
    np.testing.assert_array_equal(result.raw["y"], sample() * 2**FRACTION)
    assert (result.cycles, result.saturations, result.clipped) == ((3 << 32 | 77,), 3, 0)


def test_batch(session):
    batch = np.stack([sample(seed) for seed in range(4)])
    batch[2, 0, 0] = 1e3
    result = session.run({"x": batch}, task="edges")
    np.testing.assert_array_equal(result.outputs["y"][3], sample(3))
    assert (len(result.cycles), result.saturations, result.clipped) == (4, 12, 1)


def test_switching_task_moves_no_weights(session, device):
    for task in ("depth", "edges"):
        session.run(sample(), task=task)
    before = len(device.puts)
    for seed, task in enumerate(("edges", "depth", "depth", "edges")):
        np.testing.assert_array_equal(session.run(sample(seed), task=task).outputs["y"], sample(seed))
        assert device.running["task"] == ("depth", "edges").index(task)
    assert {size for _, size in device.puts[before:]} == {2 * ELEMENTS}  # inputs, and what outputs must replace
    assert device.get(device.registers["program_base_lo"], len(PROGRAM.image)) == PROGRAM.image


# --- Which machine ---


@pytest.mark.parametrize(("register", "value", "text"), [
    ("magic", 0xFFFF_FFFF, "magic must be 0x4d4f4c50, not 0xffffffff: there is no Patchloom machine"),
    ("version", 0x0005_0000, r"the machine's version must be 4\.\d or a later 4\.x, not 5\.0"),
    ("version", 0x0003_0009, r"the machine's version must be 4\.\d or a later 4\.x, not 3\.9"),
    ("fingerprint", 0xABCD, "another Config than this machine's: fingerprint [0-9a-f]{8}, not 0000abcd"),
])  # fmt: skip
def test_foreign_machine(register, value, text, device):
    device.registers[register] = value
    with pytest.raises(IdentityError, match=text) as caught:
        Session(device, PROGRAM)
    assert isinstance(caught.value, Error)
    assert device.puts == []


def test_later_minor_version(device):
    device.registers["version"] += 1
    assert Session(device, PROGRAM).identity.version == divmod(device.registers["version"], 1 << 16)


def test_other_build(device):
    device.registers |= {"digest_0": 7, "digest_1": 1, "digest_2": 0, "digest_3": 0x8000_0000}
    build = 7 | 1 << 32 | 0x8000_0000 << 96
    assert Session(device, PROGRAM).identity.digest == build
    assert Session(device, PROGRAM, build=build).identity.digest == build
    with pytest.raises(IdentityError, match=f"the machine must be of build 0{{31}}5, not {build:032x}"):
        Session(device, PROGRAM, build=5)


# --- Whose result ---


def stale(device):
    """It says that it is done, and has written nothing."""


def short(device):
    """The last 32 bytes are missing."""
    device.size -= 32
    device.copy()


def was_reset(device):
    device.copy()
    device.registers["epoch"] = 0


def another(device):
    """Somebody else's frame has ended, too."""
    device.copy()
    device.registers["frames"] += 1


@pytest.mark.parametrize(("fate", "text"), [
    (stale, f"{ELEMENTS // CONFIG.lanes} pieces of 32 bytes of the output were not written"),
    (short, "1 pieces of 32 bytes of the output were not written"),
    (was_reset, "the machine was reset while the frame ran"),
    (another, "the interrupt came, but the machine has done 3 frames, not 2: somebody else began one"),
])  # fmt: skip
def test_stale_result(fate, text, session, device):
    """Even where the frame before left the right one."""
    session.run(sample(), task="edges")
    device.fate = fate
    with pytest.raises(StaleError, match=text):
        session.run(sample(), task="edges")
    device.fate, device.size = FakeDevice.copy, 2 * ELEMENTS
    np.testing.assert_array_equal(session.run(sample(1), task="edges").outputs["y"], sample(1))


@pytest.mark.parametrize("register", ["task", "output_base_lo", "input_bytes", "window_last_hi", "epoch"])
def test_a_register_that_somebody_else_writes(register, session, device):
    """Before the start: the machine takes it, and the frame is not believed. Afterwards it changes nothing."""
    session.run(sample(), task="edges")
    write = device.write

    def stray(name, value):
        if name == "control":
            device.registers[register] ^= 0x40
        write(name, value)

    device.write = stray
    with pytest.raises(LinkError, match=f"what was written to register {register} is not what the machine has"):
        session.run(sample(1), task="edges")
    device.write = write
    np.testing.assert_array_equal(session.run(sample(2), task="edges").outputs["y"], sample(2))
    if REGISTERS[register].access == Access.LATCHED:
        device.fate = lambda device: (device.registers.update({register: 5}), device.copy())
        np.testing.assert_array_equal(session.run(sample(3), task="edges").outputs["y"], sample(3))


def test_a_result_is_read_once(session):
    with pytest.raises(StaleError, match="no frame was started"):
        session.finish()
    session.frame(np.zeros(ELEMENTS, np.int16), "depth")
    with pytest.raises(StaleError, match="no frame was started"):
        session.finish()


# --- Frames that overlap ---


def regions(count):
    rng = np.random.default_rng(1)
    return [rng.integers(-(1 << 15), 1 << 15, ELEMENTS).astype(np.int16) for _ in range(count)]


def in_turn(*fates):
    """One a frame."""
    left = iter(fates)

    def fate(device):
        next(left)(device)

    return fate


class Watched(FakeDevice):
    """Writes down what it is asked, as a driver on a board would see it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.events = []

    def write(self, register, value):
        super().write(register, value)
        if register == "control":
            self.events.append("reset" if value & Control.SOFT_RESET else "start")

    def put(self, address, data):
        super().put(address, data)
        self.events.append("put, busy" if self.registers["status"] & Status.BUSY else "put")

    def get(self, address, size):
        self.events.append("get, busy" if self.registers["status"] & Status.BUSY else "get")
        return super().get(address, size)


def test_inputs_and_results_travel_while_a_frame_computes():
    device = Watched(CONFIG, 2 * ELEMENTS)
    session, given = Session(device, PROGRAM), regions(4)
    device.events.clear()
    for given_region, (output, cycles, _) in zip(given, session.frames(given, "edges"), strict=True):
        np.testing.assert_array_equal(output, given_region)
        assert cycles == 3 << 32 | 77
    busy = ["put, busy"] * 2
    assert device.events == [
        *("put", "put", "start"), *busy, "start", "get, busy", *busy, "start", "get, busy", *busy, "start",
        *("get, busy", "get"),
    ]  # fmt: skip
    assert len({address for address, _ in device.puts}) == 1 + 4, "two buffers for inputs, two for outputs"


def test_every_job_has_its_task(session, device):
    given, tasks = regions(6), ["edges", "depth", "depth", "edges", "edges", "depth"]
    seen = []
    device.fate = lambda device: (seen.append(device.running["task"]), device.copy())
    for given_region, (output, *_) in zip(given, session.jobs(zip(given, tasks, strict=True)), strict=True):
        np.testing.assert_array_equal(output, given_region)
    assert seen == [("depth", "edges").index(task) for task in tasks]


def test_a_stale_frame_among_others(session, device):
    device.fate = in_turn(FakeDevice.copy, stale, FakeDevice.copy, FakeDevice.copy)
    given, found = regions(4), session.frames(regions(4), "depth")
    np.testing.assert_array_equal(next(found)[0], given[0])
    with pytest.raises(StaleError, match="were not written"):
        next(found)
    with pytest.raises(StaleError, match="no frame was started"):  # the third has begun, and is not the second
        session.finish()
    np.testing.assert_array_equal(session.frame(given[3], "depth")[0], given[3])
    assert device.resets == 1


def test_an_error_of_the_machine_among_other_frames(session, device):
    def fail(device):
        device.registers |= {"status": Status.ERROR, "irq_status": 2, "error_code": ErrorCode.WATCHDOG}

    device.fate = in_turn(FakeDevice.copy, fail, FakeDevice.copy)
    found = session.frames(regions(3), "depth")
    np.testing.assert_array_equal(next(found)[0], regions(3)[0])
    with pytest.raises(DeviceError, match="WATCHDOG"):
        next(found)
    np.testing.assert_array_equal(session.frame(regions(1)[0], "depth")[0], regions(1)[0])


def test_frames_that_nobody_asks_for_any_longer(session, device):
    for output, *_ in session.frames(regions(4), "depth"):
        np.testing.assert_array_equal(output, regions(1)[0])
        break
    with pytest.raises(StaleError, match="no frame was started"):
        session.finish()
    np.testing.assert_array_equal(session.frame(regions(2)[1], "edges")[0], regions(2)[1])
    assert device.resets == 1


def test_a_late_frame_among_others_is_still_to_be_had(session, device):
    found = session.frames(regions(2), "depth", deadline=0.5)
    device.late = 2.0
    with pytest.raises(DeadlineError):
        next(found)
    np.testing.assert_array_equal(session.finish(5.0)[0], regions(1)[0])


def test_a_frame_among_others_that_overlap(session):
    """It stops one of them, whose result nobody gets for another one's."""
    given, found = regions(4), session.frames(regions(4), "depth")
    np.testing.assert_array_equal(next(found)[0], given[0])
    np.testing.assert_array_equal(session.frame(given[3], "edges")[0], given[3])
    with pytest.raises(StaleError, match="a frame was begun among others that overlap"):
        next(found)
    assert list(found) == []
    np.testing.assert_array_equal(session.frame(given[2], "edges")[0], given[2])


def test_a_stream_of_samples(session, device):
    tasks, asked = ["depth", "edges", "edges"], []

    def camera():
        for seed, task in enumerate(tasks):
            asked.append(seed)
            yield sample(seed) * (100 if seed == 1 else 1), task

    with pytest.warns(ClippedWarning, match="do not fit"):
        found = [(result, len(asked)) for result in session.stream(camera())]
    assert [ahead for _, ahead in found] == [2, 3, 3]
    assert [result.clipped > 0 for result, _ in found] == [False, True, False]
    for seed in (0, 2):
        np.testing.assert_array_equal(found[seed][0].outputs["y"], sample(seed))
        assert (found[seed][0].cycles, found[seed][0].saturations) == ((3 << 32 | 77,), 3)
    with pytest.raises(InputError, match="samples, one by one, not of batches of 2"):
        next(session.stream([(np.stack([sample()] * 2), "depth")]))
    with pytest.raises(InputError, match="task must be one of depth, edges, not 'paint'"):
        next(session.stream([(sample(), "paint")]))


def test_no_frames(session, device):
    assert list(session.frames([], "depth")) == []
    assert device.registers["status"] == 0


# --- What goes wrong ---


def test_error_of_the_machine(session, device):
    def fail(device):
        error = {"error_code": ErrorCode.READ_DECERR, "error_detail": 0x1F, "command_index": 1}
        device.registers |= {"status": Status.ERROR, "irq_status": 2, **error}

    device.fate = fail
    with pytest.raises(DeviceError, match=r"READ_DECERR at command 1 \(first\), detail 0x1f") as caught:
        session.run(sample(), task="depth")
    error = caught.value
    assert (error.code, error.detail, error.command_index, error.note) == (ErrorCode.READ_DECERR, 0x1F, 1, "first")
    device.fate = FakeDevice.copy
    np.testing.assert_array_equal(session.run(sample(), task="depth").outputs["y"], sample())
    assert device.resets == 1


def test_unknown_error_code():
    assert str(DeviceError(99, 1, 7)) == "error 99 at command 7, detail 0x1"


def test_deadline(session, device):
    device.late = 2.0
    with pytest.raises(DeadlineError, match=r"no interrupt within 0\.5 s; status <Status\.BUSY: 1>, command 0"):
        session.run(sample(), task="depth", deadline=0.5)
    assert session.finish(5.0)[1] == 3 << 32 | 77  # it was only slow
    with pytest.raises(DeadlineError):
        session.run(sample(), task="depth", deadline=0.5)
    device.late = 0.001
    np.testing.assert_array_equal(session.run(sample(2), task="edges").outputs["y"], sample(2))
    assert device.resets == 1


def test_interrupt_of_a_frame_that_nobody_waited_for(session, device):
    session.start(np.zeros(ELEMENTS, np.int16), "depth")
    device.wait(1.0)
    np.testing.assert_array_equal(session.run(sample(2), task="edges").outputs["y"], sample(2))


def test_a_frame_that_ends_while_the_machine_is_looked_at(session, device):
    session.start(np.zeros(ELEMENTS, np.int16), "depth")
    read = device.read

    def ending(register):
        value = read(register)
        device.read = read
        device.wait(1.0)
        return value

    device.read = ending
    np.testing.assert_array_equal(session.run(sample(2), task="edges").outputs["y"], sample(2))


def test_soft_reset_that_does_not_end(device):
    def read(register):
        device.time += 0.001
        return Status.RESETTING if register == "status" else device.registers[register]

    device.read = read
    with pytest.raises(DeadlineError, match=r"the soft reset has not made the machine idle, status .*: the"):
        device.reset(0.02)
    assert device.time < 0.2


def test_close_stops_what_is_under_way(device):
    with Session(device, PROGRAM) as session:
        session.run(sample(), task="depth")
    assert device.resets == 0
    with Session(device, PROGRAM) as session:
        session.start(np.zeros(ELEMENTS, np.int16), "depth")
    assert device.resets == 1
    assert len(device.memory) > 0  # the device is the caller's


def test_inputs_that_are_refused(session, device):
    before = len(device.puts)
    for inputs, task, text in (
        (sample()[:4], "depth", r"input 'x' must have shape \[5, 16\], .* not \[4, 16\]"),
        (sample() * np.nan, "depth", "input 'x' must be finite"),
        (sample().astype(str), "depth", "input 'x' must "),
        (sample() * 1j, "depth", "input 'x' must "),
        (sample(), "paint", "task must be one of depth, edges, not 'paint'"),
        (sample(), None, "task must be one of depth, edges, not None"),
    ):
        with pytest.raises(InputError, match=text):
            session.run(inputs, task=task)
    with pytest.raises(InputError, match=rf"the input region must have {2 * ELEMENTS} bytes, not 10"):
        session.frame(np.zeros(5, np.int16), "depth")
    assert len(device.puts) == before


def test_sessions_share_a_device(device):
    other = copying(CONFIG, "alone")
    sessions = Session(device, PROGRAM), Session(device, other)
    for seed in range(3):
        np.testing.assert_array_equal(sessions[0].run(sample(seed), task="edges").outputs["y"], sample(seed))
        np.testing.assert_array_equal(sessions[1].run(sample(seed)).outputs["y"], sample(seed))
    addresses = [address for address, _ in device.puts]
    assert min(addresses) == BASE
    assert len(set(addresses)) == 2 + 2 + 2  # images, inputs, outputs


# --- What is in memory ---


def test_an_image_that_is_there_is_not_moved(session, device):
    device.puts.clear()
    again = Session(device, copying(CONFIG, "depth", "edges"))  # the same Program, read once more
    assert device.puts == []
    np.testing.assert_array_equal(again.run(sample(), task="edges").outputs["y"], sample())
    Session(device, copying(CONFIG, "other"))
    assert max(size for _, size in device.puts) > 2 * ELEMENTS


def test_a_device_that_nobody_needs_ends():
    device = FakeDevice(CONFIG, 2 * ELEMENTS)
    Session(device, PROGRAM).run(sample(), task="edges")
    left = ref(device)
    del device
    collect()
    assert left() is None


def test_an_input_that_is_there_is_not_moved(session, device):
    region = regions(1)[0]
    session.frame(region, "depth")
    device.puts.clear()
    np.testing.assert_array_equal(session.frame(region, "edges")[0], region)
    assert [address for address, _ in device.puts] == [device.running["output_base_lo"]]


def test_an_input_that_has_arrived_in_part(session, device):
    """The one before is there no more."""
    first, second = regions(2)
    session.frame(first, "depth")
    put = device.put

    def cut(address, data):
        put(address, data[:100])
        raise LinkError("the link was cut")

    device.put = cut
    with pytest.raises(LinkError, match="cut"):
        session.frame(second, "depth")
    device.put = put
    np.testing.assert_array_equal(session.frame(first, "depth")[0], first)


def test_results_are_nothing_that_was_put(session, device):
    """In doubt they are not overwritten."""
    list(session.frames(regions(2), "depth"))
    session._contents.doubt()
    device.puts.clear()
    session.frame(regions(3)[2], "depth")
    assert len(device.puts) == 2


def fail(device):
    device.registers |= {"status": Status.ERROR, "irq_status": 2, "error_code": ErrorCode.BAD_COMMAND}


@pytest.mark.parametrize("fate", [fail, stale, was_reset])
def test_a_program_that_was_overwritten(fate, session, device):
    """Whatever it made of a frame, it is whole again in the next one, and only what had changed was moved."""
    session.frame(regions(1)[0], "depth")
    image = device.registers["program_base_lo"] - BASE
    device.memory[image + 100] ^= 1
    device.fate = fate
    with pytest.raises((DeviceError, StaleError)):
        session.frame(regions(1)[0], "depth")
    device.fate = FakeDevice.copy
    device.puts.clear()
    np.testing.assert_array_equal(session.frame(regions(2)[1], "depth")[0], regions(2)[1])
    assert device.memory[image : image + len(PROGRAM.image)] == PROGRAM.image
    assert sorted(size for _, size in device.puts)[:2] == [2 * ELEMENTS] * 2
    assert len(device.puts) == 3


def test_a_probe_that_fails(session, device):
    """Its commands are not those of the next frame."""
    device.fate = fail
    with pytest.raises(DeviceError):
        session.probe(regions(1)[0], "depth", 1)
    device.fate = FakeDevice.copy
    np.testing.assert_array_equal(session.frame(regions(1)[0], "depth")[0], regions(1)[0])
    assert device.get(device.registers["program_base_lo"], len(PROGRAM.image)) == PROGRAM.image


def test_a_start_that_did_not_arrive(session, device):
    write = device.write
    device.write = lambda register, value: None if register == "control" else write(register, value)
    with pytest.raises(LinkError, match="the start of a frame is not what the machine has"):
        session.run(sample(), task="depth")
    device.write = lambda register, value: None if register == "irq_status" else write(register, value)
    with pytest.raises(LinkError, match="the end of an interrupt is not what the machine has"):
        session.run(sample(), task="depth")
    device.write = write
    np.testing.assert_array_equal(session.run(sample(1), task="depth").outputs["y"], sample(1))


def test_memory_that_cannot_be_proved():
    """A device that doubts whatever it does."""

    class Doubtful(FakeDevice):
        doubts = property(lambda self: len(self.puts))

    device = Doubtful(CONFIG, 2 * ELEMENTS)
    device.put, puts = lambda address, data: puts.append((address, len(data))), device.puts
    with pytest.raises(LinkError, match="the device's memory cannot be proved"):
        Session(device, PROGRAM).run(sample(), task="depth")
    assert len(puts) < 100

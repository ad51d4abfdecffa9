//! Programs of a few instructions of our own (RFC 9669): one that does nothing, to learn what measuring one costs,
//! and ones that put a packet back as it was and then go on as another program, so that a loop of runs
//! meets the same packet each time.

mod object;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::MapData;
use aya::programs::{ProgramInfo, SchedClassifier, TestRun as _, TestRunOptions};
use netd_integration::lab::bpftool;
use object::{NAME, object};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

/// Bytes of a frame that are put back: Ethernet, IPv4 and TCP headers.
const HEADERS: i32 = 54;
/// Where the source port is in them.
const SOURCE_PORT: u8 = 34;
/// The frame's place on the stack, and behind it that of a key.
const FRAME: i16 = -56;
const KEY: i16 = -60;

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_SKB_STORE_BYTES`, `BPF_TAIL_CALL`: numbers of helpers.
const LOOK_UP: i32 = 1;
const STORE_BYTES: i32 = 9;
const TAIL_CALL: i32 = 12;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// Instructions in the making.
#[derive(Debug, Default)]
struct Code(Vec<u8>);

impl Code {
    /// Operation, registers (destination, source), offset, immediate value.
    fn put(&mut self, operation: u8, (to, from): (u8, u8), offset: i16, value: i32) -> &mut Self {
        let registers = if cfg!(target_endian = "big") { to << 4 | from } else { from << 4 | to };
        self.0.extend([operation, registers]);
        self.0.extend(offset.to_ne_bytes());
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// `to = value`.
    fn set(&mut self, to: u8, value: i32) -> &mut Self {
        self.put(0xb7, (to, 0), 0, value)
    }

    /// `to = from`.
    fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.put(0xbf, (to, from), 0, 0)
    }

    /// `to = from + value`.
    fn sum(&mut self, to: u8, from: u8, value: i16) -> &mut Self {
        self.copy(to, from).put(0x07, (to, 0), 0, value.into())
    }

    /// `to = map`, an instruction of two words.
    fn map(&mut self, to: u8, map: &MapData) -> &mut Self {
        const MAP_FD: u8 = 1;
        self.put(0x18, (to, MAP_FD), 0, map.fd().as_fd().as_raw_fd()).put(0, (0, 0), 0, 0)
    }

    fn call(&mut self, helper: i32) -> &mut Self {
        self.put(0x85, (0, 0), 0, helper)
    }

    fn exit(&mut self, verdict: i32) -> &mut Self {
        self.set(0, verdict).put(0x95, (0, 0), 0, 0)
    }

    /// Another source port for the frame on the stack with each run: as many more than `first` as the first row of a
    /// map counts.
    fn next_port(&mut self, first: u16, count: &MapData) -> &mut Self {
        const FETCH_AND_ADD: i32 = 1;
        self.put(0x62, (10, 0), KEY, 0).map(1, count).sum(2, 10, KEY).call(LOOK_UP);
        // If there is a row, past the next two.
        self.put(0x55, (0, 0), 2, 0).exit(SHOT);
        self.set(1, 1).put(0xdb, (0, 1), 0, FETCH_AND_ADD).put(0x07, (1, 0), 0, first.into());
        // In network order.
        self.put(0xdc, (1, 0), 0, 16).put(0x6b, (10, 1), FRAME + i16::from(SOURCE_PORT), 0)
    }
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Probe(Ebpf);

impl Probe {
    /// The program that does nothing.
    pub(super) fn empty() -> Result<Self> {
        let mut code = Code::default();
        code.exit(0);
        Self::load(&code)
    }

    fn load(code: &Code) -> Result<Self> {
        let mut ebpf = Ebpf::load(&object(&code.0)).context("loading a program of a few instructions")?;
        let program: &mut SchedClassifier = ebpf.program_mut(NAME).context("no program")?.try_into()?;
        program.load()?;
        Ok(Self(ebpf))
    }

    fn program(&self) -> Result<&SchedClassifier> {
        Ok(self.0.program(NAME).context("no program")?.try_into()?)
    }

    pub(super) fn info(&self) -> Result<ProgramInfo> {
        Ok(self.program()?.info()?)
    }

    /// For [`Jump::to`].
    pub(super) fn pin(&mut self, path: &Path) -> Result<()> {
        let program: &mut SchedClassifier = self.0.program_mut(NAME).context("no program")?.try_into()?;
        program.pin(path).with_context(|| format!("pinning {}", path.display()))
    }

    /// Runs it on a frame from an interface `repeat` times; the last verdict, the mean time in nanoseconds.
    pub(super) fn run(&self, frame: &[u8], ifindex: u32, repeat: u32) -> Result<(u32, f64)> {
        // `struct __sk_buff`, of which only `ifindex` is set.
        let mut context = [0; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let mut out = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        };
        let ran = self.program()?.test_run(options)?;
        Ok((ran.return_value, ran.duration.as_secs_f64() * 1e9))
    }
}

/// Where tail calls go: to one program.
#[derive(Debug)]
pub(super) struct Jump(MapData);

impl Jump {
    /// To a pinned program; `at` is for the map.
    pub(super) fn to(program: &Path, at: &Path) -> Result<Self> {
        let map = map(at, "prog_array", 4)?;
        let (at, program) = (at.display(), program.display());
        let words = format!("map update pinned {at} key 0 0 0 0 value pinned {program}");
        bpftool(&words.split(' ').collect::<Vec<_>>())?;
        Ok(Self(map))
    }
}

/// A program that puts a frame's headers back as they were, and goes on as another.
#[derive(Debug)]
pub(super) struct Again {
    probe: Probe,
    frame: Vec<u8>,
    ifindex: u32,
}

impl Again {
    /// Runs on this frame, from this interface, on to `jump`.
    pub(super) fn same(jump: &Jump, frame: &[u8], ifindex: u32) -> Result<Self> {
        Self::load(jump, frame, ifindex, None)
    }

    /// The same with another source port each time, from the frame's on; `at` is for the map that counts.
    pub(super) fn counting(jump: &Jump, frame: &[u8], ifindex: u32, at: &Path) -> Result<Self> {
        Self::load(jump, frame, ifindex, Some(&map(at, "array", 8)?))
    }

    fn load(jump: &Jump, frame: &[u8], ifindex: u32, count: Option<&MapData>) -> Result<Self> {
        let mut code = Code::default();
        code.copy(6, 1);
        let headers = frame.get(..usize::try_from(HEADERS)?).context("a short frame")?;
        for (place, word) in (FRAME..).step_by(4).zip(headers.chunks(4)) {
            let mut bytes = [0; 4];
            bytes.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
            code.put(0x62, (10, 0), place, i32::from_ne_bytes(bytes));
        }
        let port = headers.get(usize::from(SOURCE_PORT)..).and_then(<[u8]>::first_chunk);
        if let (Some(count), Some(port)) = (count, port) {
            code.next_port(u16::from_be_bytes(*port), count);
        }
        code.copy(1, 6).set(2, 0).sum(3, 10, FRAME).set(4, HEADERS).set(5, 0).call(STORE_BYTES);
        code.copy(1, 6).map(2, &jump.0).set(3, 0).call(TAIL_CALL).exit(SHOT);
        Ok(Self { probe: Probe::load(&code)?, frame: frame.to_vec(), ifindex })
    }

    /// Runs it `repeat` times; the mean time in nanoseconds.
    pub(super) fn run(&self, repeat: u32, verdict: i32) -> Result<f64> {
        let (said, time) = self.probe.run(&self.frame, self.ifindex, repeat)?;
        ensure!(said == verdict.cast_unsigned(), "the verdict was {said}");
        Ok(time)
    }
}

/// A packet's way through a program, beside its way through one that does nothing.
#[derive(Debug)]
pub(super) struct Loop {
    real: Again,
    idle: Again,
}

/// Runs in one loop of the kernel's.
const LOOP: u32 = 1_000;

impl Loop {
    /// Through two programs by `jumps`, the second of which does nothing: the frame comes from this interface.
    pub(super) fn same([real, idle]: [&Jump; 2], frame: &[u8], ifindex: u32) -> Result<Self> {
        let again = |jump| Again::same(jump, frame, ifindex);
        Ok(Self { real: again(real)?, idle: again(idle)? })
    }

    /// The same with another source port each time, from the frame's on; maps of this name are pinned in `folder`.
    pub(super) fn counting(
        [real, idle]: [&Jump; 2],
        frame: &[u8],
        ifindex: u32,
        (folder, name): (&Path, &str),
    ) -> Result<Self> {
        let again =
            |jump, kind| Again::counting(jump, frame, ifindex, &folder.join(format!("{name}-{kind}")));
        Ok(Self { real: again(real, "real")?, idle: again(idle, "idle")? })
    }

    /// Runs the packet through the program once, which must end in this verdict.
    pub(super) fn once(&self, verdict: i32) -> Result<()> {
        self.real.run(1, verdict).map(drop)
    }

    /// Mean time over some `runs` in nanoseconds, each of which must end in this verdict.
    pub(super) fn time(&self, runs: u32, verdict: i32) -> Result<f64> {
        let loops = (runs / LOOP).max(1);
        let mut sum = 0.0;
        for _ in 0..loops {
            sum += self.real.run(LOOP, verdict)? - self.idle.run(LOOP, 0)?;
        }
        Ok(sum / f64::from(loops))
    }
}

/// A map of one row, pinned.
fn map(at: &Path, kind: &str, value: u32) -> Result<MapData> {
    let path = at.display();
    let words = format!("map create {path} type {kind} key 4 value {value} entries 1 name {NAME}");
    bpftool(&words.split(' ').collect::<Vec<_>>())?;
    MapData::from_pin(at).with_context(|| format!("opening {path}"))
}

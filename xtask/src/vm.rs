//! `cargo xtask vm`: the kernel-facing tests and the binary on Debian's kernels and on this machine's own.
//!
//! | module | owns |
//! |---|---|
//! | `suite` | which tests, with what they need; what their output says |
//! | `debian` | kernels: found, downloaded, unpacked |
//! | `module` | kernel modules and what they depend on |
//! | `cpio` | the initramfs |
//! | `qemu` | the virtual machine |
//! | `guest` | what runs in it |
//!
//! Everything stays below `target/vm`: per kernel `<release>.log` (what the tests said) and
//! `<release>.console.log` (what the kernel said), from the last run.

mod cpio;
mod debian;
pub(crate) mod guest;
mod module;
mod qemu;
mod suite;

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use crate::{cargo, out, setup};
use cpio::Archive;
use debian::{Image, Kernel};
use qemu::Machine;
use suite::{FOLDER, MODULES, Outcome, SUITES, Suite, TOOLS};

/// The kernels of Debian 12 and 13.
const KERNELS: [Kernel; 2] = [
    Kernel { series: "6.1", suite: "bookworm", must: "uplinks by clsact" },
    Kernel { series: "6.12", suite: "trixie", must: "uplinks by TCX" },
];

/// The name of this machine's own kernel on the command line.
const OWN: &str = "own";

/// What the command line says.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct Options {
    /// Only this kernel: 6.1, 6.12 or own; may be given several times.
    #[arg(long = "kernel", value_name = "KERNEL", value_parser = known)]
    kernels: Vec<String>,
    /// The netd to run, such as target/dist/netd; else that of target/debug.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Get Debian's newest kernels, also where some were unpacked before.
    #[arg(long)]
    fetch: bool,
    /// Also the tests that take minutes under emulation.
    #[arg(long, conflicts_with = "arguments")]
    full: bool,
    /// Each test on one of the emulated kernels only, but for those that differ by version.
    #[arg(long, conflicts_with_all = ["arguments", "full"])]
    share: bool,
    /// Passed on to the test programs instead of their own choice of tests, such as a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Options {
    /// All kernels, with another netd than the debug build; unless all is wanted, they share the tests.
    pub(crate) fn all(binary: PathBuf, full: bool) -> Self {
        Self { binary: Some(binary), full, share: !full, ..Self::default() }
    }

    /// What a suite's test program is told: which tests.
    fn told<'a>(&'a self, suite: &'a Suite) -> Vec<&'a str> {
        if self.chosen() {
            return self.arguments.iter().map(String::as_str).collect();
        }
        let long: &[&str] = if self.full { &[] } else { suite.long };
        suite.tests.iter().copied().chain(long.iter().flat_map(|name| ["--skip", *name])).collect()
    }

    /// The same for the `nth` of some kernels that may share the tests of this program.
    fn told_to(&self, suite: &Suite, program: &Path, (nth, kernels): (usize, usize)) -> Result<Vec<String>> {
        let told = self.told(suite);
        if !self.share {
            return Ok(told.into_iter().map(str::to_owned).collect());
        }
        let listed =
            cargo::capture(cargo::program(program).args(["--list", "--format", "terse"]).args(&told))?;
        let tests: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        if tests.is_empty() {
            bail!("{} lists no tests", program.display());
        }
        let own = suite.share(&tests, nth, kernels);
        Ok(["--exact"].into_iter().chain(own).map(str::to_owned).collect())
    }

    /// Whether which tests run is not left to the suites.
    fn chosen(&self) -> bool {
        !self.arguments.is_empty()
    }
}

fn known(name: &str) -> Result<String, String> {
    if name == OWN || KERNELS.iter().any(|kernel| kernel.series == name) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.series).chain([OWN]).collect();
    Err(format!("the kernels are {}", names.join(", ")))
}

/// Sets up and tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    out::heading("setup");
    setup::run(setup::Purpose::Kernels)?;
    test(options).map(drop)
}

/// Tests on each kernel; returns what each said.
pub(crate) fn test(options: &Options) -> Result<Vec<Line>> {
    out::heading("build");
    let programs = Programs::build(options.binary.as_deref())?;
    let wanted = |name: &str| options.kernels.is_empty() || options.kernels.iter().any(|have| have == name);
    let folder = cargo::target_dir().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut lines = Vec::new();
    let kernels: Vec<Kernel> = KERNELS.into_iter().filter(|kernel| wanted(kernel.series)).collect();
    if !kernels.is_empty() {
        if !cfg!(target_arch = "x86_64") {
            bail!("Debian's kernels are booted on x86-64 only; this machine's own: --kernel {OWN}");
        }
        out::heading("kernels");
        let images = debian::fetch(&folder, &kernels, options.fetch)?;
        let common = programs.archive()?;
        for (kernel, line) in kernels.iter().zip(guest_runs(&folder, &images, &common, (&programs, options))?)
        {
            let mut line = line?;
            if !options.chosen() {
                line.demand(kernel.must);
            }
            lines.push(line);
        }
    }
    if wanted(OWN) {
        lines.push(own_run(&folder, &programs, options)?);
    }
    out::heading("kernels tested");
    for line in &lines {
        line.show();
    }
    match lines.iter().find_map(|line| Some((line.outcome.release.as_str(), line.failure.as_ref()?))) {
        Some((release, failure)) => bail!("kernel {release}: {failure}"),
        None => Ok(lines),
    }
}

/// What one kernel said.
#[derive(Debug)]
pub(crate) struct Line {
    outcome: Outcome,
    seconds: f64,
    failure: Option<String>,
}

impl Line {
    /// Fails unless the tests said this of the kernel.
    fn demand(&mut self, fact: &str) {
        if self.failure.is_none() && !self.outcome.facts.iter().any(|have| have == fact) {
            self.failure = Some(format!("expected: {fact}; the tests said: {:?}", self.outcome.facts));
        }
    }

    /// One line, and one for each test that was skipped.
    pub(crate) fn show(&self) {
        let Outcome { release, tally, facts, .. } = &self.outcome;
        let mark = if self.failure.is_some() { "FAIL" } else { "ok" };
        out::line(&format!(
            "  {mark:<5} {release:<26} {} passed, {} failed, {} skipped; {}; {:.0} s",
            tally.passed,
            tally.failed,
            tally.ignored,
            if facts.is_empty() { "no facts told".to_owned() } else { facts.join(", ") },
            self.seconds,
        ));
        for (test, why) in &tally.skipped {
            out::line(&format!("  skip  {release}: {test}: {why}"));
        }
    }
}

/// What is tested, as files of this machine.
struct Programs {
    tests: Vec<PathBuf>,
    netd: PathBuf,
    reaper: PathBuf,
    init: PathBuf,
}

impl Programs {
    /// Builds all tests, as `cargo test` does: in the course of `cargo xtask test` they are there already.
    fn build(netd: Option<&Path>) -> Result<Self> {
        cargo::run(&mut cargo::cargo(["build", "--locked", "--workspace"]))?;
        let mut command = cargo::cargo(["test", "--locked", "--workspace", "--no-run"]);
        command.args(["--message-format", "json-render-diagnostics"]);
        out::line(&format!("$ {}", cargo::shown(&command)));
        let messages = cargo::capture(command.stderr(Stdio::inherit()))?;
        let built: Vec<([String; 3], PathBuf)> = messages.lines().filter_map(test_program).collect();
        let find = |suite: &Suite| {
            let found = built.iter().find(|(target, _)| *target == suite.target);
            found
                .map(|(_, path)| path.clone())
                .with_context(|| format!("cargo built no tests {:?}", suite.target))
        };
        let debug = cargo::target_dir().join("debug");
        let netd = match netd {
            Some(path) => path.canonicalize().with_context(|| format!("there is no {}", path.display()))?,
            None => debug.join("netd"),
        };
        Ok(Self {
            tests: SUITES.iter().map(find).collect::<Result<_>>()?,
            netd,
            reaper: debug.join("netd-demo"),
            // This program, as it was just built: the file that runs may be gone by now.
            init: debug.join("xtask"),
        })
    }

    /// All of a guest but the kernel's modules and what the suites are told.
    fn archive(&self) -> Result<Archive> {
        let mut archive = Archive::default();
        let folder = Path::new(FOLDER);
        add_program(&mut archive, Path::new("/init"), &self.init)?;
        add_program(&mut archive, &folder.join("netd"), &self.netd)?;
        add_program(&mut archive, &folder.join("netd-demo"), &self.reaper)?;
        for (suite, program) in SUITES.iter().zip(&self.tests) {
            add_program(&mut archive, &suite.program(), program)?;
        }
        for tool in TOOLS {
            let path = setup::locate(tool).with_context(|| format!("there is no program {tool}"))?;
            add_program(&mut archive, &Path::new("/bin").join(tool), &path)?;
        }
        archive.folder(folder.join("modules"));
        Ok(archive)
    }
}

/// Package, kind and name of the target, and file, if a message of cargo's tells of a test program.
fn test_program(message: &str) -> Option<([String; 3], PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let text = |pointer: &str| message.pointer(pointer)?.as_str();
    // Such as `path+file:///root/netd#0.1.0` and `path+file:///root/netd/integration#netd-integration@0.1.0`.
    let (address, version) = text("/package_id")?.rsplit_once('#')?;
    let package =
        version.split_once('@').map_or_else(|| address.rsplit('/').next(), |(name, _)| Some(name))?;
    message.pointer("/profile/test")?.as_bool()?.then_some(())?;
    let target = [package, text("/target/kind/0")?, text("/target/name")?].map(str::to_owned);
    Some((target, text("/executable")?.into()))
}

/// A program with the libraries that it asks for, in the places where its loader looks for them.
fn add_program(archive: &mut Archive, at: &Path, from: &Path) -> Result<()> {
    archive.file(at, from);
    // A static program is none to ldd, which then fails.
    let Ok(list) = cargo::capture(cargo::program("ldd").arg(from)) else { return Ok(()) };
    for line in list.lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            archive.file(path, path);
        }
    }
    Ok(())
}

/// Boots all kernels at once: much of what they do waits.
fn guest_runs(
    folder: &Path,
    images: &[Image],
    common: &Archive,
    (programs, options): (&Programs, &Options),
) -> Result<Vec<Result<Line>>> {
    let names: Vec<&str> = images.iter().map(|image| image.release.as_str()).collect();
    out::heading(&format!("kernels {}", names.join(" and ")));
    std::thread::scope(|scope| {
        let start = |(nth, image)| {
            let mut archive = common.clone();
            for (suite, program) in SUITES.iter().zip(&programs.tests) {
                let told = options.told_to(suite, program, (nth, images.len()))?;
                archive.bytes(suite.arguments(), told.join("\n").into_bytes());
            }
            let thread = std::thread::Builder::new().name("machine".into());
            thread
                .spawn_scoped(scope, move || guest_run(folder, image, archive, options))
                .context("cannot start a thread")
        };
        let threads = images.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Line>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok(threads.into_iter().map(join).collect())
    })
}

/// Boots a kernel and follows its guest.
fn guest_run(folder: &Path, image: &Image, mut archive: Archive, options: &Options) -> Result<Line> {
    let release = &image.release;
    for (n, module) in module::needed(&image.modules, &MODULES)?.into_iter().enumerate() {
        archive.bytes(format!("{FOLDER}/modules/{n:02}-{}.ko", module.name), module.bytes);
    }
    let initramfs = folder.join(format!("{release}.cpio"));
    let context = || format!("cannot write {}", initramfs.display());
    let mut file = BufWriter::new(File::create(&initramfs).with_context(context)?);
    archive.write(&mut file).and_then(|()| Ok(file.flush()?)).with_context(context)?;
    let console = folder.join(format!("{release}.console.log"));
    let machine = Machine { vmlinuz: &image.vmlinuz, initramfs: &initramfs, console: &console };
    let mut log = Log::create(folder, release)?;
    let ran = machine.run(|line| log.line(line));
    let mut line = log.end(options.chosen());
    fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
    release.clone_into(&mut line.outcome.release);
    if let Err(error) = ran {
        line.failure = Some(format!("{error:#}"));
    }
    if let Some(failure) = &mut line.failure {
        let told = folder.join(format!("{release}.log"));
        *failure += &format!("; see {} and {}", told.display(), console.display());
        out::line(&format!("---- end of {}\n{}", console.display(), tail(&console)));
    }
    Ok(line)
}

/// Runs the suites on the kernel of this machine.
fn own_run(folder: &Path, programs: &Programs, options: &Options) -> Result<Line> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let release = release.trim();
    out::heading(&format!("kernel {release} (this machine's own)"));
    let mut log = Log::create(folder, release)?;
    log.line(&suite::said(&format!("kernel {release}")));
    for (suite, program) in SUITES.iter().zip(&programs.tests) {
        let mut command = suite::command(program, &programs.netd, &options.told(suite));
        let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut child = command
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        // The command holds the pipe's other end, too: without this no end of file would come.
        drop(command);
        for line in BufReader::new(reader).split(b'\n') {
            log.line(&String::from_utf8_lossy(&line.context("cannot read what the tests say")?));
        }
        let status = child.wait().with_context(|| format!("cannot wait for {}", program.display()))?;
        log.line(&suite::said(&format!("ended {} {status}", suite.name)));
    }
    Ok(log.end(options.chosen()))
}

/// Follows one kernel's run: to the screen, to a file, to the outcome.
struct Log {
    release: String,
    file: BufWriter<File>,
    outcome: Outcome,
    begun: Instant,
    /// The harness is listing the tests that passed, which it named one by one before.
    listing: bool,
}

impl Log {
    fn create(folder: &Path, release: &str) -> Result<Self> {
        let path = folder.join(format!("{release}.log"));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let file = BufWriter::new(file);
        let release = release.to_owned();
        Ok(Self { release, file, outcome: Outcome::default(), begun: Instant::now(), listing: false })
    }

    fn line(&mut self, line: &str) {
        match line {
            "successes:" => self.listing = true,
            "failures:" => self.listing = false,
            _ if line.starts_with("test result:") => self.listing = false,
            _ => {}
        }
        if !self.listing || !line.starts_with("    ") {
            out::line(&format!("{}  {line}", self.release));
        }
        self.outcome.line(line);
        // The screen has it; a full disk must not end the run.
        writeln!(self.file, "{line}").ok();
    }

    fn end(mut self, chosen: bool) -> Line {
        self.file.flush().ok();
        let failure = self.outcome.failure(chosen);
        Line { outcome: self.outcome, seconds: self.begun.elapsed().as_secs_f64(), failure }
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::suite::SUITES;
    use super::{Options, test_program};

    #[test]
    fn a_suite_is_told_its_own_choice_unless_somebody_else_chose() {
        for suite in &SUITES {
            assert_eq!(Options { full: true, ..Options::default() }.told(suite), suite.tests);
            let ours = Options::default();
            let told = ours.told(suite);
            assert_eq!(told.len(), suite.tests.len() + 2 * suite.long.len());
            assert!(suite.long.iter().all(|name| told.contains(name)));
            let chosen = Options { arguments: vec!["a_test".into()], ..Options::default() };
            assert_eq!(chosen.told(suite), ["a_test"]);
        }
    }

    #[test]
    fn kernels_share_all_tests_and_each_runs_what_differs() {
        let [suite, _] = SUITES;
        let tests = ["datapath::a", "net::b", "datapath::c", "datapath::d", "net::e"];
        assert_eq!(suite.share(&tests, 0, 2), ["datapath::a", "net::b", "net::e"]);
        assert_eq!(suite.share(&tests, 1, 2), ["net::b", "datapath::c", "datapath::d", "net::e"]);
        assert_eq!(suite.share(&tests, 0, 1), tests);
    }

    #[test]
    fn a_test_program_is_known_by_package_kind_and_name() {
        let message = |id: &str, kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","target":{{"kind":["{kind}"],"name":"netd"}},
                "profile":{{"test":{test}}},"executable":"/t/netd-1"}}"#
            )
        };
        let own = "path+file:///src/netd#0.1.0";
        let found = |kind: &str| Some((["netd", kind, "netd"].map(str::to_owned), "/t/netd-1".into()));
        assert_eq!(test_program(&message(own, "lib", true)), found("lib"));
        assert_eq!(test_program(&message("path+file:///src/other#netd@0.1.0", "bin", true)), found("bin"));
        assert_eq!(test_program(&message(own, "bin", false)), None);
        assert_eq!(test_program("warning: not a message"), None);
    }
}

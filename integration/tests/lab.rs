//! The lab itself, without netd: plain namespaces, the kernel's own routing, and that nothing is left behind
//! whatever ends a test.

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace, leftovers};
use netd_integration::traffic::{self, Echo, Frames, Load, Proto, Sink, Style};
use netd_integration::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Two hosts on two segments with a router between, both families.
fn routed(lab: &Lab) -> Result<(Namespace, Namespace)> {
    let (left, right) = (lab.segment("left")?, lab.segment("right")?);
    let router = lab.namespace("router")?;
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    left.plug(&router, "eth0", &["10.1.0.1/24", "fd01::1/64"])?;
    right.plug(&router, "eth1", &["10.2.0.1/24", "fd02::1/64"])?;
    let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
    left.plug(&a, "eth0", &["10.1.0.2/24", "fd01::2/64"])?;
    right.plug(&b, "eth0", &["10.2.0.2/24", "fd02::2/64"])?;
    for (host, v4, v6) in [(&a, "10.1.0.1", "fd01::1"), (&b, "10.2.0.1", "fd02::1")] {
        host.ip(&format!("route add default via {v4}"))?;
        host.ip(&format!("route add default via {v6}"))?;
    }
    Ok((a, b))
}

#[test]
fn hosts_talk_across_a_router() -> Result<()> {
    Lab::run(|lab| {
        let (a, b) = routed(lab)?;
        let echo = Echo::start(&b, "b", 7000)?;
        for target in ["10.2.0.2", "fd02::2"] {
            let ip = target.parse()?;
            traffic::ping(&a, ip)?;
            for proto in Proto::ALL {
                let who = traffic::ask(&a, proto, SocketAddr::new(ip, 7000))?;
                ensure!(who == "b", "{who} answered");
            }
        }
        let shares = traffic::shares(&a, Proto::Tcp, "10.2.0.2:7000".parse()?, 50)?;
        ensure!(shares.get("b") == Some(&50), "{shares:?}");
        // It counts when it has answered.
        wait::holds("54 answers to be counted", || Ok(echo.answered() == 54))?;

        let sink = Sink::start(&b, 7001)?;
        traffic::send_bulk(&a, "[fd02::2]:7001".parse()?, 5_000_000)?;
        ensure!(sink.join()? == 5_000_000);
        Ok(())
    })
}

#[test]
fn a_load_counts_what_fails() -> Result<()> {
    Lab::run(|lab| {
        let (a, b) = routed(lab)?;
        let echo = Echo::start(&b, "b", 7000)?;
        let target = "10.2.0.2:7000".parse()?;
        let loads = Load::all(&a, target, Duration::from_millis(2))?;
        Load::all_more(&loads, 20)?;
        drop(echo);
        // Refused by RST and by ICMP: every kind of load notices, without waiting for a time-out.
        wait::holds("failures of all four", || Ok(loads.iter().all(|load| load.tally().failed > 0)))?;
        let again = Echo::start(&b, "b", 7000)?;
        for load in loads {
            load.more(20)?;
            let tally = load.stop()?;
            ensure!(tally.none_failed().is_err() && tally.answered >= 40, "{tally:?}");
        }
        drop(again);

        let quiet = Load::start(&a, Proto::Udp, Style::Held, "[fd02::2]:7000".parse()?, Duration::ZERO)?;
        wait::holds("a failure where nobody serves", || Ok(quiet.tally().failed > 0))?;
        ensure!(quiet.stop()?.answered == 0);
        Ok(())
    })
}

#[test]
fn a_raw_frame_arrives_as_sent() -> Result<()> {
    Lab::run(|lab| {
        let segment = lab.segment("segment")?;
        let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
        segment.plug(&a, "eth0", &["10.1.0.1/24"])?;
        segment.plug(&b, "eth0", &["10.1.0.2/24"])?;
        let sender = Frames::open(&a, "eth0")?;
        let mut receiver = Frames::open(&b, "eth0")?;
        let macs = (sender.mac(), traffic::eth0_mac(&b)?);
        let frame = traffic::udp_frame(
            macs,
            "192.0.2.1:1".parse()?,
            "10.1.0.2:2".parse()?,
            b"not from here, says the lab",
        )?;
        ensure!(!receiver.seen(&frame)?, "seen before it was sent");
        wait::holds("the frame", || {
            sender.send(&frame)?;
            receiver.seen(&frame)
        })?;
        let arp = traffic::arp_request(sender.mac(), "10.1.0.77".parse()?, "10.1.0.2".parse()?);
        sender.send(&arp)?;
        wait::holds("a neighbour learnt from ARP", || {
            Ok(b.ip("neighbour show 10.1.0.77")?.contains("lladdr"))
        })
    })
}

#[test]
fn a_namespace_is_removed_while_the_lab_stands() -> Result<()> {
    Lab::run(|lab| {
        let gone = lab.namespace("gone")?;
        let path = gone.path().to_path_buf();
        gone.delete()?;
        ensure!(!path.exists());
        lab.namespace("gone").map(drop).context("the name is free again")
    })
}

/// Makes a lab with a process, mounts and links in it.
fn furnished() -> Result<Lab> {
    let lab = Lab::new()?;
    let (a, _) = routed(&lab)?;
    a.spawn(Command::new("sleep").arg("600"))?;
    // One that will not end on SIGTERM.
    a.spawn(Command::new("sh").args(["-c", "trap '' TERM; while :; do sleep 600; done"]))?;
    ensure!(leftovers(lab.dir())?.len() >= 5, "{:?}", leftovers(lab.dir())?);
    Ok(lab)
}

#[test]
fn nothing_is_left_after_a_panic() -> Result<()> {
    let (send, receive) = std::sync::mpsc::channel::<PathBuf>();
    let thread = std::thread::spawn(move || {
        let lab = furnished().expect("the lab");
        send.send(lab.dir().to_path_buf()).expect("the test listens");
        panic!("on purpose");
    });
    let dir = receive.recv()?;
    ensure!(thread.join().is_err());
    let left = leftovers(&dir)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn nothing_is_left_after_an_error() -> Result<()> {
    let mut dir = PathBuf::new();
    let result = Lab::run(|lab| {
        dir = lab.dir().to_path_buf();
        lab.namespace("x")?;
        anyhow::bail!("on purpose")
    });
    ensure!(result.is_err());
    let left = leftovers(&dir)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn nothing_is_left_after_sigkill() -> Result<()> {
    nothing_is_left_after(Signal::SIGKILL, "nothing_is_left_after_sigkill")
}

#[test]
fn nothing_is_left_after_ctrl_c() -> Result<()> {
    nothing_is_left_after(Signal::SIGINT, "nothing_is_left_after_ctrl_c")
}

/// Where the victim writes its lab's folder; set: this process is the victim.
const REPORT: &str = "NETD_LAB_VICTIM_REPORT";

/// Runs `test`, the caller, in a process of its own that makes a lab and waits, and ends that process.
fn nothing_is_left_after(signal: Signal, test: &str) -> Result<()> {
    if let Some(report) = std::env::var_os(REPORT) {
        let lab = furnished()?;
        std::fs::write(report, format!("{}\n", lab.dir().display()))?;
        return wait::within(Duration::from_secs(60), "being killed", || Ok(None));
    }
    Lab::run(|lab| {
        let report = lab.dir().join("report");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", test])
            .env(REPORT, &report)
            .stdout(Stdio::null())
            .spawn()?;
        let text = wait::until("the victim's lab", || {
            ensure!(child.try_wait()?.is_none(), "the victim ended by itself");
            Ok(std::fs::read_to_string(&report).ok().filter(|text| text.ends_with('\n')))
        })?;
        let dir = Path::new(text.trim_end());
        ensure!(!leftovers(dir)?.is_empty());
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        child.wait()?;
        wait::holds("the reaper", || Ok(leftovers(dir)?.is_empty()))
    })
}

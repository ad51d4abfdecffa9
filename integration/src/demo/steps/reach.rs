//! Pod to pod, without Services.

use super::Pods;
use crate::report::Report;
use anyhow::{Result, ensure};
use netd_integration::node::Server;
use netd_integration::traffic::{self, Proto};

const PAIRS: [(&str, &str, &str); 3] =
    [("on one node", "a1", "a2"), ("in one segment", "a1", "b1"), ("across the router", "a1", "c1")];

pub(crate) fn show(pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("Pod to pod, both ways: ping, TCP, UDP");
    for (how, one, other) in PAIRS {
        for v6 in [false, true] {
            let family = if v6 { "IPv6" } else { "IPv4" };
            for (from, to) in [(one, other), (other, one)] {
                let (from, to) = (pods.get(from)?, pods.get(to)?);
                let asked = format!("{} -> {} {how}, {family}", from.pod.name, to.pod.name);
                report.check(&asked, reach(from, to, v6));
            }
        }
    }
    Ok(())
}

fn reach(from: &Server, to: &Server, v6: bool) -> Result<String> {
    let target = to.at(v6)?;
    let echo = traffic::ping(from.netns(), target.ip())?;
    let time = echo.split_once("time=").map_or(echo.as_str(), |(_, time)| time);
    let mut text = format!("ping {time}");
    for proto in Proto::ALL {
        let who = traffic::ask(from.netns(), proto, target)?;
        ensure!(who == to.pod.name, "{proto} to {target} was answered by {who}");
        text += &format!(", {proto} answered by {who}");
    }
    Ok(text)
}

//! A server that streams to a client: what is forbidden to whoever opened the flow cuts the other direction as well.

use super::scene::{DENY_EGRESS, DENY_INGRESS, Scene, asks};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::PORT;
use netd_integration::state::policy;
use netd_integration::traffic::{self, Echo, Proto, Stream};
use std::net::SocketAddr;

/// Where new flows are tried.
const ECHO: u16 = 7;
/// Records sent while none may pass.
const RECORDS: u64 = 300;

#[test]
fn what_a_server_streams_is_cut_at_the_next_packet_until_the_policy_goes() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let client = scene.pod("a", "x", "client")?;
        let (near, far) = (scene.pod("a", "y", "near")?, scene.pod("b", "y", "far")?);
        let (mut streams, mut echoes, mut port) = (Vec::new(), Vec::new(), 9_000);
        let (mut reached, mut silent) = (Vec::new(), Vec::new());
        for (server, last) in [(&near, 1), (&far, 2)] {
            echoes.push(Echo::start(&server.netns, &server.name, ECHO)?);
            let direct = [server.address(false)?, server.address(true)?];
            let at: Vec<SocketAddr> = direct.iter().map(|ip| SocketAddr::new(*ip, ECHO)).collect();
            reached.extend(asks(&client.netns, &at, Some(&server.name)));
            silent.extend(asks(&client.netns, &at, None));
            for proto in Proto::ALL {
                for ip in direct {
                    port += 1;
                    let target = SocketAddr::new(ip, port);
                    streams.push(Stream::start(&client.netns, proto, target, &server.netns, port)?);
                }
            }
            // Through a Service: TCP by one family, UDP by the other, for one socket may have the port.
            let echo = Echo::start(&server.netns, &server.name, PORT)?;
            let vips = scene.service(&server.name, last, &server.addresses)?;
            for (proto, vip) in Proto::ALL.into_iter().zip(vips) {
                traffic::answering(&client.netns, proto, vip, &[&server.name])?;
            }
            drop(echo);
            for (proto, vip) in Proto::ALL.into_iter().zip(vips) {
                streams.push(Stream::start(&client.netns, proto, vip, &server.netns, PORT)?);
            }
        }
        for (of, name, spec, nodes) in
            [("x", "deny-egress", DENY_EGRESS, &["a"][..]), ("y", "deny-ingress", DENY_INGRESS, &["a", "b"])]
        {
            let policy = policy(of, name, spec);
            let steps = || -> Result<()> {
                scene.change(nodes, &silent, || scene.site.state.policy(&policy))?;
                // What has a higher number was sent after it.
                let last: Vec<u64> = streams.iter().map(Stream::sent).collect();
                streams.iter().try_for_each(|stream| stream.more_sent(RECORDS))?;
                for (stream, last) in streams.iter().zip(last) {
                    let newest = stream.newest();
                    ensure!(
                        newest <= last,
                        "{}: record {newest} passed, and {last} was the last before the change",
                        stream.name()
                    );
                }
                scene.change(nodes, &reached, || scene.site.state.remove_policy(&policy))?;
                streams.iter().try_for_each(Stream::flows)
            };
            steps().with_context(|| policy.full_name())?;
        }
        streams.into_iter().try_for_each(Stream::stop)
    })
}

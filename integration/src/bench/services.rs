//! Which Services there are: the same for every subject.
//!
//! | what | address |
//! |---|---|
//! | Service *i* | 10.96.0.1 + *i*, TCP port 80 |
//! | its four endpoints | 10.128.0.0 + 4 *i* … + 3, port 8080: nobody is there |
//! | those of the last Service, the one that is used | the four ports of the server's pod |

use crate::load;
use anyhow::Result;
use netd_integration::state::State;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Port of every Service.
pub(crate) const PORT: u16 = 80;
/// Endpoints of every Service.
pub(crate) const ENDPOINTS: u32 = 4;
/// Where all pods of a cluster are: others' packets to a Service are masqueraded by kube-proxy.
pub(crate) const PODS: &str = "10.244.0.0/16";
/// Where all Services are.
pub(crate) const VIPS: &str = "10.96.0.0/16";

const FIRST_VIP: u32 = u32::from_be_bytes([10, 96, 0, 1]);
const FIRST_ENDPOINT: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// A number of Services of which the last is served by a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    pub(crate) count: u32,
    server: Ipv4Addr,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// As in manifests.
    pub(crate) name: String,
    pub(crate) vip: Ipv4Addr,
    pub(crate) endpoints: Vec<SocketAddrV4>,
}

impl Services {
    pub(crate) const fn new(count: u32, server: Ipv4Addr) -> Self {
        Self { count, server }
    }

    /// What a client addresses.
    pub(crate) fn target(self) -> SocketAddr {
        SocketAddr::from((self.vip(self.last()), PORT))
    }

    /// All of them, the used one last.
    pub(crate) fn all(self) -> impl Iterator<Item = Service> {
        (0..self.count).map(move |i| self.get(i))
    }

    /// The one that is used.
    pub(crate) fn used(self) -> Service {
        self.get(self.last())
    }

    const fn last(self) -> u32 {
        self.count.saturating_sub(1)
    }

    fn vip(self, i: u32) -> Ipv4Addr {
        Ipv4Addr::from(FIRST_VIP + i)
    }

    fn get(self, i: u32) -> Service {
        let endpoints = if i == self.last() {
            load::PORTS.map(|port| SocketAddrV4::new(self.server, port)).to_vec()
        } else {
            let first = FIRST_ENDPOINT + i * ENDPOINTS;
            (0..ENDPOINTS).map(|e| SocketAddrV4::new(Ipv4Addr::from(first + e), 8080)).collect()
        };
        Service { name: format!("s{i:05}"), vip: self.vip(i), endpoints }
    }

    /// Writes all but the used one as manifests.
    pub(crate) fn write_unused(self, state: &State) -> Result<()> {
        (0..self.last()).try_for_each(|i| self.get(i).write(state))
    }
}

impl Service {
    /// Writes a file with the Service and one with its EndpointSlices.
    pub(crate) fn write(&self, state: &State) -> Result<()> {
        self.write_slices(state)?;
        let Self { name, vip, .. } = self;
        state.put(
            &format!("service-{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  \
                 type: ClusterIP\n  clusterIP: \"{vip}\"\n  clusterIPs: [\"{vip}\"]\n  ipFamilies: [IPv4]\n  \
                 ports:\n  - name: p\n    protocol: TCP\n    port: {PORT}\n    targetPort: 8080\n"
            ),
        )
    }

    fn write_slices(&self, state: &State) -> Result<()> {
        state.put(&self.slices_file(), &self.slices()?)
    }

    /// Name of the file with the EndpointSlices.
    pub(crate) fn slices_file(&self) -> String {
        format!("slices-{}.yaml", self.name)
    }

    /// The EndpointSlices: one for each port among the endpoints.
    pub(crate) fn slices(&self) -> Result<String> {
        let Self { name, endpoints, .. } = self;
        let mut ports: Vec<u16> = endpoints.iter().map(SocketAddrV4::port).collect();
        ports.dedup();
        let mut text = String::new();
        for port in ports {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{port}\n  \
                 namespace: default\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: IPv4\n\
                 ports:\n- name: p\n  protocol: TCP\n  port: {port}\nendpoints:\n",
            )?;
            for endpoint in endpoints.iter().filter(|endpoint| endpoint.port() == port) {
                writeln!(text, "- addresses: [\"{}\"]\n  conditions: {{ready: true}}", endpoint.ip())?;
            }
        }
        Ok(text)
    }
}

//! The network configuration from standard input (SPEC.md, section 3, "Deriving request configuration").
//!
//! Keys are read one by one, when a verb needs them: DEL must work with whatever else is wrong.

use super::environment::{check_container_id, check_ifname, is_name};
use super::result::{AttachResult, Dns};
use super::{Code, Error, Version};
use crate::cni::types::Attachment;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// netd's own keys: how the plugin finds the agent, and what it needs when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `socket`: the agent's.
    pub socket: PathBuf,
    /// `stateDir`: the folder of the ledger.
    pub state_dir: PathBuf,
    /// `bpffs`: the folder of the pinned maps.
    pub bpffs: PathBuf,
}

impl Settings {
    /// Path of the ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state_dir.join("ledger.json")
    }
}

pub(super) struct Network {
    keys: Map<String, Value>,
}

impl Network {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let keys = serde_json::from_slice(bytes).map_err(|error| {
            Error::because(Code::DECODE, "the network configuration is not a JSON object", error.to_string())
        })?;
        Ok(Self { keys })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
            Some(other) => Err(not_a("string", key, other)),
        }
    }

    /// `cniVersion` as it stands there.
    pub(super) fn raw_version(&self) -> Result<Option<&str>, Error> {
        self.text("cniVersion")
    }

    pub(super) fn version(&self) -> Result<Version, Error> {
        // Absent means 0.1.0, from the time before there was the key (libcni, `ConfigDecoder`).
        let text = self.raw_version()?.unwrap_or("0.1.0");
        Version::parse(text).ok_or_else(|| {
            let details = format!("cniVersion is {text:?}, netd speaks {}", Version::list());
            Error::because(Code::VERSION, "incompatible CNI version", details)
        })
    }

    pub(super) fn name(&self) -> Result<String, Error> {
        let Some(name) = self.text("name")? else {
            return Err(Error::new(Code::CONFIG, "the network configuration has no name"));
        };
        if !is_name(name) {
            let details = format!("{name:?} is not letters, digits, underscore, dot and hyphen");
            return Err(Error::because(Code::CONFIG, "invalid name of the network", details));
        }
        Ok(name.to_owned())
    }

    pub(super) fn settings(&self) -> Result<Settings, Error> {
        let path = |key: &str, default: &str| -> Result<PathBuf, Error> {
            let path = Path::new(self.text(key)?.unwrap_or(default));
            if !path.is_absolute() {
                let details = format!("{} is not an absolute path", path.display());
                return Err(Error::because(Code::CONFIG, format!("invalid {key}"), details));
            }
            Ok(path.to_owned())
        };
        Ok(Settings {
            socket: path("socket", "/run/netd/netd.sock")?,
            state_dir: path("stateDir", "/var/lib/netd")?,
            bpffs: path("bpffs", "/sys/fs/bpf/netd")?,
        })
    }

    /// Refuses what would silently not happen.
    pub(super) fn refuse_unsupported(&self) -> Result<(), Error> {
        let unsupported = |key: &str, value: &Value, why: &str| {
            Err(Error::because(Code::UNSUPPORTED_FIELD, format!("unsupported field {key}={value}"), why))
        };
        if let Some(value @ Value::Object(ipam)) = self.get("ipam")
            && !ipam.is_empty()
        {
            return unsupported(
                "ipam",
                value,
                "netd gives addresses itself; see ipam in its own configuration",
            );
        }
        if let Some(value @ Value::Bool(true)) = self.get("ipMasq") {
            return unsupported("ipMasq", value, "netd does not masquerade by network");
        }
        if let Some(Value::Object(runtime)) = self.get("runtimeConfig") {
            let empty = |value: &Value| match value {
                Value::Null => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::String(text) => text.is_empty(),
                Value::Bool(_) | Value::Number(_) => false,
            };
            if let Some((key, value)) = runtime.iter().find(|(key, value)| *key != "ips" && !empty(value)) {
                let why = "netd has only the capability ips; remove the other from capabilities";
                return unsupported(&format!("runtimeConfig.{key}"), value, why);
            }
        }
        Ok(())
    }

    /// `runtimeConfig.ips` (CONVENTIONS.md): addresses the container must get, with or without a prefix.
    pub(super) fn fixed_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let ips = match self.get("runtimeConfig") {
            None => return Ok(Vec::new()),
            Some(Value::Object(runtime)) => runtime.get("ips").filter(|value| !value.is_null()),
            Some(other) => return Err(not_a("object", "runtimeConfig", other)),
        };
        let Some(ips) = ips else { return Ok(Vec::new()) };
        let Value::Array(ips) = ips else { return Err(not_a("list", "runtimeConfig.ips", ips)) };
        ips.iter()
            .map(|value| {
                let address = value.as_str().and_then(|text| text.split('/').next()?.parse().ok());
                address.ok_or_else(|| not_a("IP address", "runtimeConfig.ips", value))
            })
            .collect()
    }

    pub(super) fn dns(&self) -> Result<Option<Dns>, Error> {
        self.get("dns").map(|value| decode("dns", value)).transpose()
    }

    pub(super) fn previous(&self) -> Result<Option<AttachResult>, Error> {
        self.get("prevResult").map(|value| decode("prevResult", value)).transpose()
    }

    /// The attachments that GC must keep. Absent is an error, not "none": it would detach every pod. The
    /// second name is what the first drafts had; runtimes pass both (libcni, `GCNetworkList`).
    pub(super) fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, self.keys.get(*key)?))) else {
            return Err(Error::new(Code::CONFIG, format!("GC without {}", keys[0])));
        };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            Value::Null => &[],
            other => return Err(not_a("list", key, other)),
        };
        list.iter()
            .map(|item| {
                let text = |name: &str| item.get(name).and_then(Value::as_str);
                match (text("containerID"), text("ifname")) {
                    (Some(id), Some(ifname))
                        if check_container_id(id).is_ok() && check_ifname(ifname).is_ok() =>
                    {
                        Ok(Attachment { container_id: id.to_owned(), ifname: ifname.to_owned() })
                    }
                    _ => Err(not_a("containerID and ifname", key, item)),
                }
            })
            .collect()
    }
}

fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value)
        .map_err(|error| Error::because(Code::DECODE, format!("cannot decode {key}"), error.to_string()))
}

fn not_a(what: &str, key: &str, value: &Value) -> Error {
    let shown: String = value.to_string().chars().take(256).collect();
    Error::because(Code::DECODE, format!("cannot decode {key}"), format!("{shown} is not a {what}"))
}

//! One invocation of the plugin, parsed: what is asked, and in which version the answer goes.

use super::environment::{Environment, Verb};
use super::network::{Network, Settings};
use super::result::{AttachResult, Dns};
use super::{Code, Error, Version};
use crate::cni::types::Attachment;
use crate::model::ObjectName;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

/// ADD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Version of the answer.
    pub version: Version,
    /// Name of the network.
    pub network: String,
    /// Which interface of which container.
    pub attachment: Attachment,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// The pod, if the runtime told.
    pub pod: Option<ObjectName>,
    /// The pod's UID, if the runtime told.
    pub pod_uid: Option<String>,
    /// Addresses the container must get.
    pub fixed: Vec<IpAddr>,
    /// Resolver settings to hand on.
    pub dns: Option<Dns>,
    /// Result of the plugins before this one in the chain.
    pub previous: Option<AttachResult>,
}

/// DEL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Del {
    /// Version of the answer.
    pub version: Version,
    /// Which interface of which container.
    pub attachment: Attachment,
}

/// CHECK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Version of the answer.
    pub version: Version,
    /// Which interface of which container.
    pub attachment: Attachment,
    /// The container's network namespace.
    pub netns: PathBuf,
    /// Result of ADD.
    pub previous: AttachResult,
}

/// GC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// Version of the answer.
    pub version: Version,
    /// Name of the network.
    pub network: String,
    /// What is to be kept.
    pub valid: Vec<Attachment>,
}

/// STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the answer.
    pub version: Version,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach.
    Add(Add),
    /// Detach.
    Del(Del),
    /// Compare.
    Check(Check),
    /// Detach all but those listed.
    Gc(Gc),
    /// Can ADD be served?
    Status(Status),
    /// Which versions? With the version of the question.
    Version(String),
}

/// One invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Version of the answer.
    pub version: Version,
    /// What is asked.
    pub command: Command,
    /// Where things are.
    pub settings: Settings,
}

impl Invocation {
    /// From environment and standard input, which are not read where the environment is wrong already. An
    /// error comes with the version to print it in.
    pub fn parse(
        env: &dyn Fn(&str) -> Option<OsString>,
        stdin: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Self, (Version, Error)> {
        let unversioned = |error| (Version::LATEST, error);
        let environment = Environment::parse(env).map_err(unversioned)?;
        let bytes = stdin().map_err(unversioned)?;
        // VERSION asks before anything is known: no configuration is as good as one.
        if environment.verb == Verb::Version && bytes.trim_ascii().is_empty() {
            return Self::parse_network(
                environment,
                &Network::parse(b"{}").map_err(unversioned)?,
                Version::LATEST,
            )
            .map_err(unversioned);
        }
        let network = Network::parse(&bytes).map_err(unversioned)?;
        if environment.verb == Verb::Version {
            return Self::parse_network(environment, &network, Version::LATEST).map_err(unversioned);
        }
        let version = network.version().map_err(unversioned)?;
        Self::parse_network(environment, &network, version).map_err(|error| (version, error))
    }

    fn parse_network(environment: Environment, network: &Network, version: Version) -> Result<Self, Error> {
        let since = match environment.verb {
            Verb::Add | Verb::Del | Verb::Version => Version::V0_3_1,
            Verb::Check => Version::V0_4_0,
            Verb::Gc | Verb::Status => Version::V1_1_0,
        };
        if version < since {
            let details = format!("cniVersion is {version}, the command came with {since}");
            return Err(Error::because(Code::VERSION, "incompatible CNI version", details));
        }
        let Environment { verb, attachment, netns, args } = environment;
        let lacks = || Error::new(Code::ENVIRONMENT, "CNI_CONTAINERID, CNI_IFNAME or CNI_NETNS is missing");
        let command = match verb {
            Verb::Version => {
                Command::Version(network.raw_version()?.unwrap_or(Version::LATEST.as_str()).to_owned())
            }
            Verb::Status => {
                network.name()?;
                Command::Status(Status { version })
            }
            Verb::Gc => {
                Command::Gc(Gc { version, network: network.name()?, valid: network.valid_attachments()? })
            }
            Verb::Del => {
                network.name()?;
                Command::Del(Del { version, attachment: attachment.ok_or_else(lacks)? })
            }
            Verb::Check => {
                network.name()?;
                let Some(previous) = network.previous()? else {
                    return Err(Error::new(Code::CONFIG, "CHECK without prevResult"));
                };
                let (attachment, netns) = attachment.zip(netns).ok_or_else(lacks)?;
                Command::Check(Check { version, attachment, netns, previous })
            }
            Verb::Add => {
                let name = network.name()?;
                network.refuse_unsupported()?;
                let (attachment, netns) = attachment.zip(netns).ok_or_else(lacks)?;
                Command::Add(Add {
                    version,
                    network: name,
                    attachment,
                    netns,
                    pod: args.pod,
                    pod_uid: args.uid,
                    fixed: network.fixed_addresses()?,
                    dns: network.dns()?,
                    previous: network.previous()?,
                })
            }
        };
        Ok(Self { version, command, settings: network.settings()? })
    }
}

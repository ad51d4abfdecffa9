//! As much of nf_tables over netlink as a Service of kube-proxy's takes
//! (`include/uapi/linux/netfilter/nf_tables.h`, `net/netfilter/nfnetlink.c`).
//!
//! A transaction is one datagram: a begin, messages, an end. It takes effect whole or not at all. Integers of
//! nf_tables are in network order, those of netlink itself in the machine's.

use anyhow::{Context as _, Result, bail, ensure};
use netd_integration::lab::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use std::os::fd::{AsRawFd as _, OwnedFd};

const SUBSYSTEM: u16 = 10;
const BEGIN: u16 = 16;
const END: u16 = 17;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;

const IPV4: u8 = 2;
const SET_ANONYMOUS_CONSTANT_MAP: u32 = 0x1 | 0x2 | 0x8;
const TYPE_INTEGER: u32 = 4;
const TYPE_VERDICT: u32 = 0xffff_ff00;
const PORT_GIVEN: u32 = 0x2;

/// Where a packet goes on.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    Goto(String),
    Jump(String),
}

impl Verdict {
    fn put(&self, attributes: &mut Attributes) -> Result<()> {
        let (code, chain) = match self {
            Self::Goto(chain) => (-4_i32, chain),
            Self::Jump(chain) => (-3_i32, chain),
        };
        attributes.nest(2, |verdict| {
            verdict.put(1, &code.to_be_bytes())?;
            verdict.text(2, chain)
        })
    }
}

/// A part of a rule. All use register 1, the port of a translation register 2.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    /// Loads a part of the network header.
    Network { offset: u32, len: u32 },
    /// Loads the transport protocol.
    L4Proto,
    /// Goes on if what was loaded is this.
    Equal(Vec<u8>),
    /// Goes on if it is not.
    Unequal(Vec<u8>),
    /// Loads a random number below the modulus.
    Random { modulus: u32 },
    /// The verdict is what the map has for what was loaded.
    VerdictMap { set: String, id: u32 },
    /// The verdict.
    Immediate(Verdict),
    /// Translates the destination.
    Dnat { ip: Vec<u8>, port: u16 },
}

impl Expression {
    fn put(&self, list: &mut Attributes) -> Result<()> {
        match self {
            Self::Network { offset, len } => list.expression("payload", |data| {
                data.number(1, 1)?;
                data.number(2, 1)?;
                data.number(3, *offset)?;
                data.number(4, *len)
            }),
            Self::L4Proto => list.expression("meta", |data| {
                data.number(1, 1)?;
                data.number(2, 16)
            }),
            Self::Equal(value) => list.compare(0, value),
            Self::Unequal(value) => list.compare(1, value),
            Self::Random { modulus } => list.expression("numgen", |data| {
                data.number(1, 1)?;
                data.number(2, *modulus)?;
                data.number(3, 1)
            }),
            Self::VerdictMap { set, id } => list.expression("lookup", |data| {
                data.text(1, set)?;
                data.number(2, 1)?;
                data.number(3, 0)?;
                data.number(4, *id)
            }),
            Self::Immediate(verdict) => list.expression("immediate", |data| {
                data.number(1, 0)?;
                data.nest(2, |value| verdict.put(value))
            }),
            Self::Dnat { ip, port } => {
                list.load(1, ip)?;
                list.load(2, &port.to_be_bytes())?;
                list.expression("nat", |data| {
                    data.number(1, 1)?;
                    data.number(2, u32::from(IPV4))?;
                    data.number(3, 1)?;
                    data.number(5, 2)?;
                    data.number(7, PORT_GIVEN)
                })
            }
        }
    }
}

/// Attributes one after the other (RFC 3549 §2.3.2.2 has the form).
#[derive(Debug, Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(&mut self, kind: u16, value: &[u8]) -> Result<()> {
        let length = u16::try_from(value.len() + 4).context("an attribute of over 64 kB")?;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        Ok(())
    }

    fn number(&mut self, kind: u16, value: u32) -> Result<()> {
        self.put(kind, &value.to_be_bytes())
    }

    fn text(&mut self, kind: u16, value: &str) -> Result<()> {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut inner = Self::default();
        fill(&mut inner)?;
        self.put(kind | NESTED, &inner.0)
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.nest(1, |element| {
            element.text(1, name)?;
            element.nest(2, fill)
        })
    }

    fn compare(&mut self, operator: u32, value: &[u8]) -> Result<()> {
        self.expression("cmp", |data| {
            data.number(1, 1)?;
            data.number(2, operator)?;
            data.nest(3, |data| data.put(1, value))
        })
    }

    fn load(&mut self, register: u32, value: &[u8]) -> Result<()> {
        self.expression("immediate", |data| {
            data.number(1, register)?;
            data.nest(2, |data| data.put(1, value))
        })
    }
}

/// Messages that take effect together.
#[derive(Debug)]
pub(super) struct Transaction {
    table: &'static str,
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    sequence: u32,
    sets: u32,
}

impl Transaction {
    /// An empty one for a table of the family `ip`.
    pub(super) fn new(table: &'static str) -> Self {
        let mut transaction = Self { table, bytes: Vec::new(), last: 0, sequence: 0, sets: 0 };
        transaction.frame(BEGIN, 0, &[0, 0, 0, 10]);
        transaction
    }

    fn frame(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.last = self.bytes.len();
        let length = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        self.sequence += 1;
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Attributes) -> Result<()>,
    ) -> Result<()> {
        let mut attributes = Attributes(vec![IPV4, 0, 0, 0]);
        attributes.text(1, self.table)?;
        fill(&mut attributes)?;
        self.frame(kind, flags, &attributes.0);
        Ok(())
    }

    /// A chain without a hook.
    pub(super) fn chain(&mut self, name: &str) -> Result<()> {
        self.message(NEW_CHAIN, CREATE, |chain| chain.text(3, name))
    }

    /// A rule at the end of a chain.
    pub(super) fn rule(&mut self, chain: &str, expressions: &[Expression]) -> Result<()> {
        self.message(NEW_RULE, CREATE | APPEND, |rule| {
            rule.text(2, chain)?;
            rule.nest(4, |list| expressions.iter().try_for_each(|expression| expression.put(list)))
        })
    }

    /// An element of a set or of a map to verdicts.
    pub(super) fn element(&mut self, set: &str, key: &[u8], verdict: Option<&Verdict>) -> Result<()> {
        self.message(NEW_ELEMENT, CREATE, |elements| {
            elements.text(2, set)?;
            elements.nest(3, |list| element(list, key, verdict))
        })
    }

    /// A map from 0, 1, … to verdicts, for one rule of this transaction. The name is given, where `nft` lets
    /// the kernel look for one: `name` is to be unique.
    pub(super) fn anonymous_map(&mut self, name: &str, verdicts: &[Verdict]) -> Result<(String, u32)> {
        self.sets += 1;
        let (set, id) = (format!("__map-{name}"), self.sets);
        let size = u32::try_from(verdicts.len())?;
        self.message(NEW_SET, CREATE, |map| {
            map.text(2, &set)?;
            map.number(3, SET_ANONYMOUS_CONSTANT_MAP)?;
            map.number(4, TYPE_INTEGER)?;
            map.number(5, 4)?;
            map.number(6, TYPE_VERDICT)?;
            map.number(7, 0)?;
            map.nest(9, |description| description.number(1, size))?;
            map.number(10, id)?;
            // For `nft list`: numbers of the machine's order.
            map.put(13, &[&[0, 4][..], &1_u32.to_ne_bytes()].concat())
        })?;
        self.message(NEW_ELEMENT, CREATE, |elements| {
            elements.text(2, &set)?;
            elements.number(4, id)?;
            elements.nest(3, |list| {
                (0_u32..).zip(verdicts).try_for_each(|(i, verdict)| {
                    // What `numgen` gives is in the machine's order.
                    element(list, &i.to_ne_bytes(), Some(verdict))
                })
            })
        })?;
        Ok((set, id))
    }
}

fn element(list: &mut Attributes, key: &[u8], verdict: Option<&Verdict>) -> Result<()> {
    list.nest(1, |element| {
        element.nest(1, |data| data.put(1, key))?;
        match verdict {
            Some(verdict) => element.nest(2, |data| verdict.put(data)),
            None => Ok(()),
        }
    })
}

/// A netlink socket of one namespace.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.enter(|| {
            let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
            Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
        })?;
        setsockopt(&socket, sockopt::SndBufForce, &(16 << 20))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
        Ok(Self(socket))
    }

    /// Sends a transaction and waits for its success.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub(super) fn commit(&mut self, mut transaction: Transaction) -> Result<()> {
        // The last message asks for an answer; errors are told without being asked for.
        let flags = transaction.last + 6;
        let place = transaction.bytes.get_mut(flags..flags + 2).context("an empty transaction")?;
        let asked = u16::from_ne_bytes([place.first(), place.get(1)].map(|b| b.copied().unwrap_or(0))) | ACK;
        place.copy_from_slice(&asked.to_ne_bytes());
        transaction.frame(END, 0, &[0, 0, 0, 10]);
        let sent = send(self.0.as_raw_fd(), &transaction.bytes, MsgFlags::empty())?;
        ensure!(sent == transaction.bytes.len(), "{sent} of {} bytes sent", transaction.bytes.len());
        let mut answer = [0; 512];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        // A header, then the error's number, negative; 0: well.
        let number = answer.get(16..20).filter(|_| length >= 20).and_then(|bytes| bytes.try_into().ok());
        match number.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(error) => bail!("{}", std::io::Error::from_raw_os_error(-error)),
            None => bail!("an answer of {length} bytes"),
        }
    }
}

//! One rtnetlink socket per network namespace, opened once (`rtnetlink(7)`, RFC 3549).
//!
//! A [`Netlink`] owns a thread named `netd-netlink` that lives in the namespace. It drives the socket on a
//! runtime of its own, because the kernel does the work of a request inside `sendto` (deleting a link waits
//! for an RCU grace period there), which must never hold up a worker of the agent's runtime; and it lends itself
//! to [`Netlink::run`], for what must happen inside the namespace, such as writing `/proc/sys/net`. The
//! thread ends when the last clone is dropped and what it was doing is done.
//!
//! Invariants:
//! - A request that was sent is followed to its answer, whether or not the caller still waits.
//! - Success means the kernel said so: an answer that never comes is [`Error::Timeout`] or [`Error::Closed`].
//! - Dumps run one at a time (the kernel refuses a second on one socket with `EBUSY`) and are repeated when
//!   the kernel says that they were interrupted by a change.
//! - Deleting a link holds up nothing else.
//! - At most [`IN_FLIGHT`] requests are unanswered, so that answers cannot overflow the receive buffer.

mod address;
mod error;
mod link;
mod neighbor;
mod route;
#[cfg(test)]
mod tests;
mod watch;

pub use address::Address;
pub use error::Error;
pub use link::{Link, LinkChange, Veth};
pub use neighbor::Neighbor;
pub use route::{KernelRoute, NextHop};

pub(super) use address::add as add_address;
pub(super) use link::change as change_link;
pub(super) use neighbor::add as add_neighbor;
pub(super) use route::{add as add_route, delete as delete_route, replace as replace_route};

use super::netns::{self, NetNs};
use futures_util::StreamExt;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use std::future::Future;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tokio::runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

/// Requests of one socket that may wait for their answer at a time.
const IN_FLIGHT: usize = 32;

/// Answers of [`IN_FLIGHT`] requests and a dump's buffers fit many times over.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The kernel answers at once or, when others hold the rtnl lock, after them; never this late.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Links that are deleted at a time, each by a socket and a thread of its own.
const DELETIONS: usize = 32;

/// How often an interrupted dump is repeated before giving up.
const DUMP_ATTEMPTS: usize = 32;

/// A request and what it is for, in words for its error.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: String,
    pub(super) message: RouteNetlinkMessage,
    /// Beside `NLM_F_REQUEST`.
    pub(super) flags: u16,
}

/// A namespace's netlink socket and thread. Clones share both.
#[derive(Clone, Debug)]
pub struct Netlink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handle: rtnetlink::Handle,
    runtime: runtime::Handle,
    permits: Semaphore,
    dumps: Semaphore,
    deletions: Semaphore,
    ns: NetNs,
    /// Dropped with the last clone; the thread waits for that.
    _alive: oneshot::Sender<()>,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        Self::start(NetNs::current()?)
    }

    /// Opens a socket in another namespace.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NetNs`].
    pub fn open_in(ns: &NetNs) -> Result<Self, Error> {
        Self::start(ns.try_clone()?)
    }

    fn start(ns: NetNs) -> Result<Self, Error> {
        let inside = ns.try_clone()?;
        let (alive, ended) = oneshot::channel();
        let (report, opened) = mpsc::channel();
        thread::Builder::new()
            .name("netd-netlink".into())
            .spawn(move || drive(&inside, &report, ended))
            .map_err(Error::Open)?;
        let (handle, runtime) = opened.recv().map_err(|_gone| {
            Error::Open(io::Error::other("the netlink thread ended while it was starting"))
        })??;
        let permits = Semaphore::new(IN_FLIGHT);
        let (dumps, deletions) = (Semaphore::new(1), Semaphore::new(DELETIONS));
        Ok(Self {
            shared: Arc::new(Shared { handle, runtime, permits, dumps, deletions, ns, _alive: alive }),
        })
    }

    /// Identity of the namespace it works in, see [`NetNs::identity`].
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.shared.ns.identity()
    }

    /// Runs `f` on the thread that lives in the namespace: for `/proc/sys/net` and for opening sockets. It holds
    /// up the socket's requests: microseconds only.
    ///
    /// # Errors
    /// [`Error::Closed`]: the thread is gone.
    ///
    /// # Panics
    /// If `f` panics.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        self.carry_out("work in the namespace", async move { Ok(f()) }).await
    }

    /// Runs a future on the namespace's thread to its end, whether or not the caller waits that long: for
    /// sequences that clean up after themselves.
    pub(super) async fn carry_out<T, E>(
        &self,
        operation: &str,
        future: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        // Aborting is not possible: the handle is only ever awaited, and dropping it detaches.
        match self.shared.runtime.spawn(future).await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => resume_unwind(ended.into_panic()),
            Err(_cancelled) => Err(Error::Closed { operation: operation.to_owned() }.into()),
        }
    }

    /// Starts a future on the namespace's thread: for clean-up by destructors. It holds a clone of this, so it
    /// runs to its end.
    pub(super) fn start_detached(&self, future: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        drop(self.shared.runtime.spawn(async move {
            future.await;
            drop(this);
        }));
    }

    /// Sends a request that deletes a link, by a socket of its own. The kernel releases the rtnl lock and then
    /// waits inside `sendto` for an RCU barrier, some 30 ms (`netdev_run_todo`), which several deletions can do
    /// together, and other requests need not wait for.
    async fn apply_deletion(&self, request: Request) -> Result<(), Error> {
        let this = self.clone();
        self.carry_out("delete a link", async move {
            let _permit = this.shared.deletions.acquire().await;
            Self::open_in(&this.shared.ns)?.apply(vec![request]).await
        })
        .await
    }

    /// Sends requests in order, a window at a time, and waits for all answers. The first failure is returned;
    /// the requests after it in its window were carried out nevertheless.
    pub(super) async fn apply(&self, requests: Vec<Request>) -> Result<(), Error> {
        let mut first_error = None;
        for result in self.try_each(requests).await? {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Sends requests in order, a window at a time; every one has a result of its own.
    pub(super) async fn try_each(&self, requests: Vec<Request>) -> Result<Vec<Result<(), Error>>, Error> {
        let this = self.clone();
        self.carry_out("send requests", async move {
            let mut results = Vec::with_capacity(requests.len());
            let mut requests = requests.into_iter().peekable();
            while requests.peek().is_some() {
                let sent: Vec<_> = requests.by_ref().take(IN_FLIGHT / 2).collect();
                results.extend(this.window(sent).await);
            }
            Ok::<_, Error>(results)
        })
        .await
    }

    /// Sends a few requests at once and then collects their acknowledgements.
    async fn window(&self, requests: Vec<Request>) -> Vec<Result<(), Error>> {
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        let permits = self.shared.permits.acquire_many(count).await;
        let mut waiting = Vec::with_capacity(requests.len());
        for Request { operation, message, flags } in requests {
            let flags = flags | netlink_packet_core::NLM_F_ACK;
            let answers = self.send(message, flags);
            waiting.push((operation, answers));
        }
        let mut results = Vec::with_capacity(waiting.len());
        for (operation, answers) in waiting {
            results.push(match answers {
                Ok(answers) => collect(operation, answers).await.map(|_none| ()),
                Err(_closed) => Err(Error::Closed { operation }),
            });
        }
        drop(permits);
        results
    }

    /// Asks for one object.
    async fn get(&self, request: Request) -> Result<Option<RouteNetlinkMessage>, Error> {
        let this = self.clone();
        self.carry_out("send a request", async move {
            let _permit = this.shared.permits.acquire().await;
            // With an acknowledgement, an answer that this program cannot decode is not waited for in vain.
            let flags = request.flags | netlink_packet_core::NLM_F_ACK;
            match this.send(request.message, flags) {
                Ok(answers) => Ok(collect(request.operation, answers).await?.objects.pop()),
                Err(_closed) => Err(Error::Closed { operation: request.operation }),
            }
        })
        .await
    }

    /// Asks for all objects of a kind.
    async fn dump(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let this = self.clone();
        let operation = operation.to_owned();
        self.carry_out("dump", async move {
            let _one_at_a_time = this.shared.dumps.acquire().await;
            for _ in 0..DUMP_ATTEMPTS {
                let answers = this
                    .send(message.clone(), NLM_F_DUMP)
                    .map_err(|_closed| Error::Closed { operation: operation.clone() })?;
                let dump = collect(operation.clone(), answers).await?;
                if !dump.interrupted {
                    return Ok(dump.objects);
                }
            }
            Err(Error::Interrupted { operation })
        })
        .await
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>, rtnetlink::Error>
    {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        self.shared.handle.clone().request(request)
    }
}

/// What came back for one request.
struct Answer {
    objects: Vec<RouteNetlinkMessage>,
    interrupted: bool,
}

/// Reads a request's answers up to the one that ends it.
async fn collect(
    operation: String,
    answers: impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Answer, Error> {
    let mut answers = std::pin::pin!(answers);
    let mut answer = Answer { objects: Vec::new(), interrupted: false };
    loop {
        let Ok(next) = timeout(ANSWER_WITHIN, answers.next()).await else {
            return Err(Error::Timeout { operation });
        };
        let Some(message) = next else {
            return Err(Error::Closed { operation });
        };
        answer.interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(object) => answer.objects.push(object),
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answer),
            NetlinkPayload::Error(error) => return Err(Error::from_kernel(operation, &error)),
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(answer),
            NetlinkPayload::Done(done) => return Err(Error::from_code(operation, done.code)),
            _ => {}
        }
    }
}

/// Body of the namespace's thread.
fn drive(
    ns: &NetNs,
    report: &mpsc::Sender<Result<(rtnetlink::Handle, runtime::Handle), Error>>,
    ended: oneshot::Receiver<()>,
) {
    let open = || -> Result<_, Error> {
        ns.enter()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Open)?;
        let inside = runtime.enter();
        let (mut connection, handle, unsolicited) =
            rtnetlink::new_connection_with_strict_check().map_err(Error::Open)?;
        drop(inside);
        // Answers, not their absence, say that a request is done.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true).map_err(Error::Open)?;
        socket.set_cap_ack(true).map_err(Error::Open)?;
        socket.set_rx_buf_sz(i32::try_from(RECEIVE_BUFFER).unwrap_or(i32::MAX)).map_err(Error::Open)?;
        Ok((runtime, connection, handle, unsolicited))
    };
    match open() {
        Ok((runtime, connection, handle, unsolicited)) => {
            // No group is joined; late answers to requests given up are dropped here.
            drop(unsolicited);
            // Owned by this runtime, and ends with it: no request is under way then (each holds a clone).
            runtime.spawn(connection);
            if report.send(Ok((handle, runtime.handle().clone()))).is_ok() {
                // The sender is never used: this returns when it is dropped.
                drop(runtime.block_on(ended));
            }
        }
        Err(error) => drop(report.send(Err(error))),
    }
}

impl From<netns::Error> for Error {
    fn from(error: netns::Error) -> Self {
        Self::NetNs(error)
    }
}

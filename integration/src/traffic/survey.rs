//! Many questions at once, of which some must be answered and others must not.
//!
//! One thread asks them all and waits on all sockets together: a flow that is silently dropped costs the same time
//! whether it is one or hundreds. What an [`Echo`](super::Echo) understands is asked: one line, whose answer names
//! who gave it. A socket belongs to the namespace in which it was made, whatever thread uses it.

use super::Proto;
use crate::lab::Namespace;
use crate::wait;
use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// How long an answer that nobody may give is waited for once all those are in that somebody must give.
const SILENCE: Duration = Duration::from_millis(400);
/// How long one that somebody must give is waited for: one lost packet of TCP is repaired within.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a change may take until it is in the kernel, asked about again and again.
const CHANGE: Duration = Duration::from_secs(30);
/// Pauses between two rounds, so that an agent gets to work: from the first each is twice the one before.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(640)];
/// What is asked.
const LINE: &[u8] = b"1\n";

/// A question, and who may answer it.
#[derive(Clone, Debug)]
pub struct Question {
    /// The namespace that asks.
    pub from: Namespace,
    /// By what.
    pub proto: Proto,
    /// Whom.
    pub target: SocketAddr,
    /// Names, of which one must answer; none: nobody may.
    pub by: Vec<String>,
}

impl Question {
    /// One that must be answered by `name`.
    #[must_use]
    pub fn answered(from: &Namespace, proto: Proto, target: SocketAddr, name: &str) -> Self {
        Self { from: from.clone(), proto, target, by: vec![name.into()] }
    }

    /// One that nobody may answer.
    #[must_use]
    pub fn silent(from: &Namespace, proto: Proto, target: SocketAddr) -> Self {
        Self { from: from.clone(), proto, target, by: Vec::new() }
    }

    fn satisfied(&self, answer: &Answer) -> bool {
        match answer {
            Answer::By(name) => self.by.contains(name),
            Answer::Silence | Answer::Refused(_) => self.by.is_empty(),
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} from {}", self.proto, self.target, self.from.name())?;
        match self.by.as_slice() {
            [] => f.write_str(", which nobody may answer"),
            names => write!(f, ", which {} must answer", names.join(" or ")),
        }
    }
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This one answered.
    By(String),
    /// Nobody.
    Silence,
    /// The socket was told that it is no use.
    Refused(String),
}

/// Asks until all is as it must be at once; the last answers.
///
/// # Errors
/// No sockets.
pub fn settled(questions: &[Question]) -> Result<Vec<Answer>> {
    allow_many_files()?;
    let start = Instant::now();
    let [mut pause, longest] = PAUSES;
    loop {
        let answers = round(questions, Haste::UntilWrong)?;
        if agree(questions, &answers) {
            return Ok(answers);
        }
        if start.elapsed() > CHANGE {
            // The whole of it, to be shown.
            return round(questions, Haste::None);
        }
        std::thread::sleep(pause);
        pause = longest.min(pause * 2);
    }
}

/// Waits until all is as it must be.
///
/// # Errors
/// It is not by the deadline: what is wrong.
pub fn expect(questions: &[Question]) -> Result<()> {
    let answers = settled(questions)?;
    let wrong: Vec<String> = questions
        .iter()
        .zip(&answers)
        .filter(|(question, answer)| !question.satisfied(answer))
        .map(|(question, answer)| format!("{question}: {answer:?}"))
        .collect();
    anyhow::ensure!(
        wrong.is_empty(),
        "{} of {} are wrong:\n{}",
        wrong.len(),
        answers.len(),
        wrong.join("\n")
    );
    Ok(())
}

/// Waits until each has been answered once, in whatever round.
///
/// # Errors
/// One was not by the deadline.
pub fn reached(questions: &[Question]) -> Result<()> {
    let mut left = questions.to_vec();
    wait::holds("answers to all questions", || {
        let answers = round(&left, Haste::UntilSilent)?;
        let mut answers = answers.iter();
        left.retain(|question| !answers.next().is_some_and(|answer| question.satisfied(answer)));
        Ok(left.is_empty())
    })
    .with_context(|| left.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}

/// Asks all once, and waits for what may come of it; the answers.
///
/// # Errors
/// No sockets.
pub fn once(questions: &[Question]) -> Result<Vec<Answer>> {
    allow_many_files()?;
    round(questions, Haste::None)
}

/// Whether all is as it must be.
#[must_use]
pub fn agree(questions: &[Question], answers: &[Answer]) -> bool {
    questions.iter().zip(answers).all(|(question, answer)| question.satisfied(answer))
}

/// A whole table has more sockets, at both ends, than one process usually may have open.
fn allow_many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}

/// When a round ends early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// Never.
    None,
    /// When the first thing is not as it must be.
    UntilWrong,
    /// When nothing has come for a moment.
    UntilSilent,
}

/// A moment, for [`Haste::UntilSilent`].
const MOMENT: Duration = Duration::from_millis(50);

fn round(questions: &[Question], haste: Haste) -> Result<Vec<Answer>> {
    let mut asked = open_all(questions)?;
    let start = Instant::now();
    let mut last = start;
    loop {
        let mut descriptors: Vec<PollFd<'_>> = asked.iter().filter_map(Asked::waits_for).collect();
        if descriptors.is_empty() {
            break;
        }
        match poll(&mut descriptors, PollTimeout::from(10_u8)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for answers"),
        }
        let ready: Vec<bool> = descriptors.iter().map(|one| one.any().unwrap_or(false)).collect();
        for (one, ready) in asked.iter_mut().filter(|one| one.answer.is_none()).zip(ready) {
            if ready && one.go_on() {
                last = Instant::now();
            }
        }
        let wrong = |one: &Asked<'_>| one.answer.as_ref().is_some_and(|given| !one.question.satisfied(given));
        let missing = asked.iter().any(|one| one.answer.is_none() && !one.question.by.is_empty());
        let over = match haste {
            Haste::UntilWrong if asked.iter().any(wrong) => true,
            Haste::UntilSilent => last.elapsed() > MOMENT,
            Haste::None | Haste::UntilWrong => !missing && last.elapsed() > SILENCE,
        };
        if over || start.elapsed() > PATIENCE + SILENCE {
            break;
        }
    }
    Ok(asked.into_iter().map(|one| one.answer.unwrap_or(Answer::Silence)).collect())
}

/// A question under way.
struct Asked<'q> {
    question: &'q Question,
    socket: Socket,
    said: bool,
    heard: Vec<u8>,
    answer: Option<Answer>,
}

/// Makes all sockets, entering each namespace once for as many questions as follow one another there, then asks.
fn open_all(questions: &[Question]) -> Result<Vec<Asked<'_>>> {
    let mut asked = Vec::with_capacity(questions.len());
    for group in questions.chunk_by(|a, b| a.from.path() == b.from.path()) {
        let Some(first) = group.first() else { continue };
        let sockets = first.from.enter(|| group.iter().map(socket).collect::<Result<Vec<Socket>>>());
        let sockets = sockets.with_context(|| format!("making sockets in {}", first.from.name()))?;
        for (question, socket) in group.iter().zip(sockets) {
            asked.push(Asked { question, socket, said: false, heard: Vec::new(), answer: None });
        }
    }
    for one in &mut asked {
        one.begin();
    }
    Ok(asked)
}

fn socket(question: &Question) -> Result<Socket> {
    let kind = match question.proto {
        Proto::Tcp => Type::STREAM,
        Proto::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(question.target), kind, None)?;
    socket.set_nonblocking(true)?;
    if question.proto == Proto::Tcp {
        // Closed by a reset: a round leaves nothing behind that waits.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    Ok(socket)
}

impl Asked<'_> {
    fn begin(&mut self) {
        match self.socket.connect(&self.question.target.into()) {
            Ok(()) => self.say(),
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => self.answer = Some(Answer::Refused(error.to_string())),
        }
    }

    fn waits_for(&self) -> Option<PollFd<'_>> {
        let what = if self.said { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        self.answer.is_none().then(|| PollFd::new(self.socket.as_fd(), what))
    }

    /// The socket is ready: the next step. Says whether it was an answer.
    fn go_on(&mut self) -> bool {
        if self.said {
            self.hear();
        } else {
            match self.socket.take_error() {
                Ok(None) => self.say(),
                Ok(Some(error)) | Err(error) => self.answer = Some(Answer::Refused(error.to_string())),
            }
        }
        matches!(self.answer, Some(Answer::By(_)))
    }

    fn say(&mut self) {
        self.said = true;
        if let Err(error) = (&self.socket).write_all(LINE) {
            self.answer = Some(Answer::Refused(error.to_string()));
        }
    }

    fn hear(&mut self) {
        let mut bytes = [0; 512];
        match (&self.socket).read(&mut bytes) {
            Ok(0) => self.answer = Some(Answer::Refused("closed".into())),
            Ok(length) => {
                self.heard.extend_from_slice(bytes.get(..length).unwrap_or_default());
                if let Some(line) = self.heard.strip_suffix(LINE) {
                    let name = String::from_utf8_lossy(line).trim_end().to_owned();
                    self.answer = Some(Answer::By(name));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => self.answer = Some(Answer::Refused(error.to_string())),
        }
    }
}

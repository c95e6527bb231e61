//! QMP clients that misbehave; they write raw bytes to their own connection.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cpr_qmp::message::ServerMessage;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::observe::patience::patient;
use crate::observe::qmp::{ANSWER, label};

/// The first and the second part of a command.
const HALVES: [&str; 2] = ["{\"execute\": \"query-st", "atus\", \"id\": \"half\"}\n"];
/// The command that a client sends repeatedly without reading the answers.
const QUESTION: &str = "{\"execute\": \"query-commands\"}\n";
/// If the VMM reads no commands for so long, it waits for its answers to be read. In milliseconds.
const FULL_MS: u16 = 20;

/// The connection of a client that misbehaves.
pub struct MisbehavingClient {
    reader: BufReader<UnixStream>,
}

impl MisbehavingClient {
    /// Connects and negotiates the capabilities, so that all commands are available.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let mut misbehaving_client = Self::connect_raw(path)?;
        misbehaving_client.say("{\"execute\": \"qmp_capabilities\", \"id\": \"hello\"}\n")?;
        misbehaving_client
            .await_line("the answer to qmp_capabilities", |line| line.contains("\"hello\""))?;
        Ok(misbehaving_client)
    }

    /// Only connects; the VMM need not have accepted the connection.
    fn connect_raw(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patient(ANSWER)))?;
        stream.set_write_timeout(Some(patient(ANSWER)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes.as_ref())
    }

    /// Connects and sends invalid JSON.
    pub fn garbage(path: &Path) -> io::Result<Self> {
        let mut misbehaving_client = Self::connect_raw(path)?;
        misbehaving_client.say(b"{\"execute\": \"quit\"]}\n\0\xff\xfe}{]][\n\"execute quit\n")?;
        Ok(misbehaving_client)
    }

    /// Checks that the client gets an error or is disconnected.
    pub fn expect_error_or_close(&mut self) -> io::Result<()> {
        match self.await_line("an error", |line| line.starts_with("{\"error\"")) {
            Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                Ok(())
            }
            other => other,
        }
    }

    /// Sends half a command.
    pub fn begin(&mut self) -> io::Result<()> {
        self.say(HALVES[0])
    }

    /// Sends the rest of the command and waits for the answer.
    pub fn complete(&mut self) -> io::Result<()> {
        self.say(HALVES[1])?;
        let answered = |line: &str| line.contains("\"half\"") && line.contains("\"running\"");
        self.await_line("the answer to a command that was sent in halves", answered)
    }

    /// Sends commands until the VMM stops reading them because none of its answers is read.
    pub fn ask_without_reading(&mut self) -> io::Result<()> {
        let stream = self.reader.get_ref();
        stream.set_nonblocking(true)?;
        let mut question = QUESTION.as_bytes();
        loop {
            match { stream }.write(question) {
                Ok(sent) if sent == question.len() => question = QUESTION.as_bytes(),
                Ok(sent) => question = &question[sent..],
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut fds, PollTimeout::from(FULL_MS))? == 0 {
                        return stream.set_nonblocking(false);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads everything unread, and checks that its events are exactly `events`, in order.
    pub fn expect_unread_events(&mut self, events: &[String]) -> io::Result<()> {
        let mut heard = Vec::new();
        while heard.len() < events.len() {
            let line = self.line("the unread events")?;
            if let Ok(ServerMessage::Event(event)) = serde_json::from_str::<ServerMessage>(&line) {
                heard.push(label(&event));
            }
        }
        if heard == events {
            return Ok(());
        }
        let (heard, events) = (heard.join(" "), events.join(" "));
        Err(io::Error::other(format!("it got the events [{heard}], other clients [{events}]")))
    }

    fn await_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
        while !wanted(&self.line(what)?) {}
        Ok(())
    }

    fn line(&mut self, what: &str) -> io::Result<String> {
        let mut line = Vec::new();
        let failed = |kind, why| io::Error::new(kind, format!("while waiting for {what}: {why}"));
        match self.reader.read_until(b'\n', &mut line) {
            Ok(0) => Err(failed(ErrorKind::UnexpectedEof, "it was disconnected".to_owned())),
            Ok(_) => Ok(String::from_utf8_lossy(&line).into_owned()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                Err(failed(e.kind(), format!("no data for {:?}", patient(ANSWER))))
            }
            Err(e) => Err(failed(e.kind(), e.to_string())),
        }
    }
}

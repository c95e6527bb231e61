//! A client of the serial port's socket, which sends numbered lines and checks those it receives.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The check name under which errors of a client are reported.
pub const NAME: &str = "serial";

/// The timeout of one read; also the longest delay until a client ends.
const TURN: Duration = Duration::from_millis(5);
/// Lines received for each line sent, so that sent lines do not pile up.
const GOT_FOR_SENT: u64 = 2;

/// A client on its own thread; dropping it closes the connection.
#[derive(Debug)]
pub struct SerialClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    leave: AtomicBool,
    got: AtomicU64,
    wrong: Mutex<Option<String>>,
}

impl SerialClient {
    /// Connects to the socket at `path`. `next` is the number of the next line to send; the next
    /// client continues it.
    pub fn connect(path: &Path, next: Arc<AtomicU32>) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TURN))?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("serial".into()).spawn(move || {
            if let Err(why) = converse(stream, &theirs, &next) {
                *theirs.wrong.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns the number of whole lines received so far.
    pub fn lines(&self) -> u64 {
        self.shared.got.load(Ordering::Acquire)
    }

    /// Closes the connection and returns the error until then, if any.
    pub fn leave(mut self) -> Option<String> {
        self.end();
        self.wrong()
    }

    fn end(&mut self) {
        self.shared.leave.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }

    /// Returns the error so far, if any.
    pub fn wrong(&self) -> Option<String> {
        self.shared.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for SerialClient {
    fn drop(&mut self) {
        self.end();
    }
}

fn converse(mut stream: UnixStream, shared: &Shared, next: &AtomicU32) -> Result<(), String> {
    let mut lines = Lines::default();
    let mut sent = 0;
    let mut buffer = [0; 4096];
    loop {
        // Loaded before the read, so that everything received until then is checked.
        let last = shared.leave.load(Ordering::Acquire);
        match stream.read(&mut buffer) {
            Ok(0) => return Err("the VMM closed the connection".into()),
            Ok(length) => {
                for byte in &buffer[..length] {
                    lines.take(*byte)?;
                }
                shared.got.store(lines.whole, Ordering::Release);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(format!("cannot read from the serial port: {e}")),
        }
        if last {
            return Ok(());
        }
        while sent < lines.whole / GOT_FOR_SENT {
            let line = format!("{:08x}\n", next.load(Ordering::Relaxed));
            let wrote = stream.write_all(line.as_bytes());
            wrote.map_err(|e| format!("cannot write to the serial port: {e}"))?;
            next.fetch_add(1, Ordering::Relaxed);
            sent += 1;
        }
    }
}

/// Parses the guest's output, which may start in the middle of a line.
#[derive(Default)]
struct Lines {
    began: bool,
    text: Vec<u8>,
    last: Option<u32>,
    whole: u64,
}

impl Lines {
    fn take(&mut self, byte: u8) -> Result<(), String> {
        if byte != b'\n' {
            self.text.push(byte);
            return Ok(());
        }
        let text = std::mem::take(&mut self.text);
        if !std::mem::replace(&mut self.began, true) {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&text).into_owned();
        let number = (text.len() == 8).then(|| u32::from_str_radix(&shown, 16).ok()).flatten();
        let number = number.ok_or_else(|| format!("invalid line {shown:?} from the guest"))?;
        if let Some(last) = self.last
            && number != last.wrapping_add(1)
        {
            return Err(format!("after the guest's line {last:08x} came {number:08x}"));
        }
        self.last = Some(number);
        self.whole += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<u64, String> {
        let mut lines = Lines::default();
        text.bytes().try_for_each(|byte| lines.take(byte)).map(|()| lines.whole)
    }

    #[test]
    fn counts_from_the_first_whole_line() {
        assert_eq!(take("0041\n00000042\n00000043\n000"), Ok(2));
    }

    #[test]
    fn leave_returns_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = SerialClient::connect(&path, Arc::default()).unwrap();
        let (mut port, _) = listener.accept().unwrap();
        port.write_all(b"\n00000001\n00000003\n").unwrap();
        let told = client.leave();
        assert_eq!(told.as_deref(), Some("after the guest's line 00000001 came 00000003"));
    }

    #[test]
    fn reports_missing_duplicate_and_invalid_lines() {
        for (text, told) in [
            ("\n00000042\n00000044\n", "after the guest's line 00000042 came 00000044"),
            ("\n00000042\n00000042\n", "after the guest's line 00000042 came 00000042"),
            ("\n00000042\n0000043\n", "invalid line \"0000043\" from the guest"),
            ("\n0000x042\n", "invalid line \"0000x042\" from the guest"),
        ] {
            assert_eq!(take(text).unwrap_err(), told);
        }
    }
}

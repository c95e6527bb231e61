//! What a lab and the harness outside tell each other: a JSON value a line.

use std::io::{BufRead, Write};

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The ports of a lab, in the order of their numbers.
pub const PORTS: [&str; 4] = ["control", "stdin", "stdout", "stderr"];

/// What a lab reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The command has started.
    Started,
    /// The command ended, and the kernel is restarted, after which the command starts again.
    Restarting,
    /// The command ended.
    Ended {
        /// Its exit status, or 128 and the signal's number.
        status: u8,
        /// Bytes that it wrote to standard output, and to standard error.
        written: [u64; 2],
    },
    /// The lab cannot run the command.
    Failed(String),
}

/// What a lab is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Send this signal to the command.
    Signal(i32),
    /// Set the terminal's rows and columns.
    Size(u16, u16),
}

/// Writes a message.
pub fn send(mut port: impl Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    port.write_all(&line)
}

/// Reads the next message; `None` at the end.
pub fn receive<M: DeserializeOwned>(port: &mut impl BufRead) -> std::io::Result<Option<M>> {
    let mut line = String::new();
    if port.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines() {
        let mut text = Vec::new();
        let ended = Report::Ended { status: 3, written: [12, 0] };
        send(&mut text, &Report::Started).unwrap();
        send(&mut text, &ended).unwrap();
        insta::assert_snapshot!(String::from_utf8_lossy(&text), @r#"
        "started"
        {"ended":{"status":3,"written":[12,0]}}
        "#);
        let mut port = text.as_slice();
        assert_eq!(receive(&mut port).unwrap(), Some(Report::Started));
        assert_eq!(receive(&mut port).unwrap(), Some(ended));
        assert_eq!(receive::<Report>(&mut port).unwrap(), None);
        assert!(receive::<Request>(&mut "{}\n".as_bytes()).is_err());
    }
}

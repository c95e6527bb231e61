//! The REST API of Cloud Hypervisor on its Unix socket: one request a connection.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::backend::control::ControlError;
use crate::observe::poll::Deadline;

/// The longest reply, in bytes.
const LONGEST: usize = 1 << 20;
/// How long the server may take to close a connection.
const CLOSED: Duration = Duration::from_secs(1);
/// The most headers of a reply.
const HEADERS: usize = 32;

/// The API of one process.
#[derive(Clone, Debug)]
pub(super) struct Api {
    /// Its socket.
    pub socket: PathBuf,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("cannot reach {0}: {1}")]
    Unreachable(PathBuf, #[source] io::Error),
    #[error("the reply is not HTTP: {0}")]
    NotHttp(#[from] httparse::Error),
    #[error("the reply ends before it is complete")]
    Incomplete,
    #[error("the reply is longer than {LONGEST} bytes")]
    TooLong,
    #[error("status {0}: {1}")]
    Status(u16, String),
    #[error("the reply is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
}

impl Api {
    /// Sends a request that changes something, within `limit`.
    pub fn put(
        &self,
        name: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<(), ControlError> {
        self.request("PUT", name, body, limit).map(drop).map_err(|e| failed(name, e))
    }

    /// Asks for something, within `limit`.
    pub fn get(&self, name: &str, limit: Duration) -> Result<Value, ControlError> {
        self.request("GET", name, None, limit).map_err(|e| failed(name, e))
    }

    fn request(
        &self,
        method: &str,
        name: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, ApiError> {
        let deadline = Deadline::after(limit);
        let unreachable = |e| ApiError::Unreachable(self.socket.clone(), e);
        let mut stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        let rest = deadline.remaining().max(Duration::from_millis(1));
        stream.set_read_timeout(Some(rest)).map_err(unreachable)?;
        stream.set_write_timeout(Some(rest)).map_err(unreachable)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let text = format!(
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).map_err(unreachable)?;
        let mut reply = Vec::new();
        let mut part = [0; 4096];
        loop {
            if let Some(answer) = parse(&reply)? {
                // Until the server has closed it too: the descriptors of its process are observed.
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.set_read_timeout(Some(CLOSED));
                while matches!(stream.read(&mut part), Ok(1..)) {}
                return answer;
            }
            match stream.read(&mut part).map_err(unreachable)? {
                0 => return Err(ApiError::Incomplete),
                bytes => reply.extend_from_slice(&part[..bytes]),
            }
            if reply.len() > LONGEST {
                return Err(ApiError::TooLong);
            }
        }
    }
}

fn failed(name: &str, why: ApiError) -> ControlError {
    ControlError::new(format!("call {name}"), why)
}

/// Parses a reply, once it is complete.
fn parse(reply: &[u8]) -> Result<Option<Result<Value, ApiError>>, ApiError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(reply)? else { return Ok(None) };
    let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|h| std::str::from_utf8(h.value).ok()?.trim().parse().ok());
    let Some(body) = reply.get(head..head + length.unwrap_or(0usize)) else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    Ok(Some(match status {
        200..300 if body.is_empty() => Ok(Value::Null),
        200..300 => serde_json::from_slice(body).map_err(ApiError::from),
        _ => Err(ApiError::Status(status, reason(body))),
    }))
}

/// The text of an error: a chain of errors, as a list of strings, or any text.
fn reason(body: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(chain) => chain.join(": "),
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("HTTP/1.1 204 \r\nServer: x\r\n\r\n", "null")]
    #[case(
        "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}",
        r#"{"state":"Running"}"#
    )]
    #[case(
        "HTTP/1.1 500 \r\nContent-Length: 15\r\n\r\n[\"one\", \"two\" ]",
        "status 500: one: two"
    )]
    #[case("HTTP/1.1 404 \r\nContent-Length: 3\r\n\r\nno\n", "status 404: no")]
    fn replies(#[case] reply: &str, #[case] expected: &str) {
        for incomplete in 0..reply.len() {
            assert!(parse(&reply.as_bytes()[..incomplete]).unwrap().is_none(), "{incomplete}");
        }
        let told = match parse(reply.as_bytes()).unwrap().unwrap() {
            Ok(value) => value.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn other_protocols_are_errors() {
        assert!(parse(b"{\"QMP\": {}}\r\n\r\n").is_err());
    }

    #[test]
    fn a_missing_socket_is_named() {
        let api = Api { socket: "/no/such/socket".into() };
        let error = api.get("vm.info", Duration::from_millis(1)).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot call vm.info: cannot reach /no/such/socket: No such file or directory (os error 2)"
        );
    }
}

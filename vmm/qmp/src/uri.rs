//! The text form of a [`MigrationAddress`]: `file:PATH[,offset=N]`, `tcp:HOST:PORT`, ….

use std::str::FromStr;

use crate::address::{
    FdSocketAddress, FileMigrationArgs, InetSocketAddress, MigrationAddress, MigrationChannel,
    MigrationChannelType, MigrationExecCommand, SocketAddress, UnixSocketAddress,
    VsockSocketAddress,
};
use crate::message::QmpError;

/// Errors from parsing a migration URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// The part before the first colon is not a known transport, or there is no colon.
    #[error("unknown migration protocol: {0}")]
    UnknownProtocol(String),
    /// The offset of a `file:` URI is not a number.
    #[error("file URI '{uri}' has bad offset '{offset}'")]
    BadOffset {
        /// The whole URI.
        uri: String,
        /// The offset in it.
        offset: String,
    },
    /// The part after the transport has the wrong form.
    #[error("migration URI '{uri}' is not of the form {form}")]
    BadForm {
        /// The whole URI.
        uri: String,
        /// The expected form.
        form: &'static str,
    },
}

impl From<UriError> for QmpError {
    fn from(error: UriError) -> Self {
        Self::generic(error.to_string())
    }
}

impl MigrationAddress {
    /// Returns the main channel's address from the arguments of `migrate` or `migrate-incoming`,
    /// exactly one of which must be given.
    pub fn from_arguments(
        uri: Option<&str>,
        channels: Option<&[MigrationChannel]>,
    ) -> Result<Self, QmpError> {
        match (uri, channels) {
            (Some(uri), None) => uri.parse().map_err(|error: UriError| error.into()),
            // QEMU treats an empty list as absent.
            (None, Some(channels)) if !channels.is_empty() => Self::main_of(channels),
            _ => Err(QmpError::generic("need either 'uri' or 'channels' argument")),
        }
    }

    fn main_of(channels: &[MigrationChannel]) -> Result<Self, QmpError> {
        for (i, channel) in channels.iter().enumerate() {
            let kind = channel.channel_type;
            if channels[..i].iter().any(|earlier| earlier.channel_type == kind) {
                return Err(QmpError::generic(format!(
                    "Channel list has more than one {kind} entry"
                )));
            }
        }
        let main = channels.iter().find(|c| c.channel_type == MigrationChannelType::Main);
        match main {
            Some(channel) => Ok(channel.addr.clone()),
            None => Err(QmpError::generic("Channel list has no main entry")),
        }
    }
}

impl FromStr for MigrationAddress {
    type Err = UriError;

    fn from_str(uri: &str) -> Result<Self, UriError> {
        let unknown = || UriError::UnknownProtocol(uri.to_owned());
        let (scheme, rest) = uri.split_once(':').ok_or_else(unknown)?;
        let bad = |form| UriError::BadForm { uri: uri.to_owned(), form };
        let needed = |form| if rest.is_empty() { Err(bad(form)) } else { Ok(rest.to_owned()) };
        Ok(match scheme {
            "file" => Self::File(file(uri, rest)?),
            "exec" => Self::Exec(MigrationExecCommand {
                args: vec!["/bin/sh".into(), "-c".into(), needed("exec:COMMAND")?],
            }),
            "tcp" => Self::Socket(SocketAddress::Inet(
                inet(rest).ok_or_else(|| bad("tcp:HOST:PORT[,OPTION]..."))?,
            )),
            "rdma" => Self::Rdma(inet(rest).ok_or_else(|| bad("rdma:HOST:PORT[,OPTION]..."))?),
            "unix" => Self::Socket(SocketAddress::Unix(UnixSocketAddress {
                path: needed("unix:PATH")?,
                is_abstract: None,
                tight: None,
            })),
            "vsock" => {
                let (cid, port) = rest.split_once(':').ok_or_else(|| bad("vsock:CID:PORT"))?;
                Self::Socket(SocketAddress::Vsock(VsockSocketAddress {
                    cid: cid.to_owned(),
                    port: port.to_owned(),
                }))
            }
            "fd" => Self::Socket(SocketAddress::Fd(FdSocketAddress { str: needed("fd:NAME")? })),
            _ => return Err(unknown()),
        })
    }
}

fn file(uri: &str, rest: &str) -> Result<FileMigrationArgs, UriError> {
    let (filename, offset) = match rest.split_once(",offset=") {
        Some((filename, text)) => {
            let bad = || UriError::BadOffset { uri: uri.to_owned(), offset: text.to_owned() };
            (filename, parse_size(text).ok_or_else(bad)?)
        }
        None => (rest, 0),
    };
    if filename.is_empty() {
        return Err(UriError::BadForm { uri: uri.to_owned(), form: "file:PATH[,offset=N]" });
    }
    Ok(FileMigrationArgs { filename: filename.to_owned(), offset })
}

/// Parses a number of bytes, decimal with an optional binary suffix, or `0x…`.
fn parse_size(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Parses `HOST:PORT[,to=N][,ipv4[=on|off]]…`; an IPv6 address must be in brackets.
fn inet(text: &str) -> Option<InetSocketAddress> {
    let mut words = text.split(',');
    let (host, port) = words.next()?.rsplit_once(':')?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let mut address = InetSocketAddress {
        host: bracketed.unwrap_or(host).to_owned(),
        port: port.to_owned(),
        ..Default::default()
    };
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, "on"));
        let flag = match name {
            "to" => {
                address.to = Some(value.parse().ok()?);
                continue;
            }
            "numeric" => &mut address.numeric,
            "ipv4" => &mut address.ipv4,
            "ipv6" => &mut address.ipv6,
            "keep-alive" => &mut address.keep_alive,
            "mptcp" => &mut address.mptcp,
            _ => return None,
        };
        *flag = Some(match value {
            "on" => true,
            "off" => false,
            _ => return None,
        });
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("file:/a/b", json!({"transport": "file", "filename": "/a/b", "offset": 0}))]
    #[case("file:a,b,offset=4k", json!({"transport": "file", "filename": "a,b", "offset": 4096}))]
    #[case("file:a,offset=0x10", json!({"transport": "file", "filename": "a", "offset": 16}))]
    #[case("tcp:[::1]:5,to=9,ipv4=off,ipv6", json!({
        "transport": "socket", "type": "inet", "host": "::1", "port": "5",
        "to": 9, "ipv4": false, "ipv6": true,
    }))]
    #[case("tcp::5", json!({"transport": "socket", "type": "inet", "host": "", "port": "5"}))]
    #[case("unix:/s", json!({"transport": "socket", "type": "unix", "path": "/s"}))]
    #[case("vsock:3:4", json!({"transport": "socket", "type": "vsock", "cid": "3", "port": "4"}))]
    #[case("fd:7", json!({"transport": "socket", "type": "fd", "str": "7"}))]
    #[case("rdma:h:1", json!({"transport": "rdma", "host": "h", "port": "1"}))]
    #[case("exec:cat >x", json!({"transport": "exec", "args": ["/bin/sh", "-c", "cat >x"]}))]
    fn parses_uris(#[case] uri: &str, #[case] expected: serde_json::Value) {
        let address: MigrationAddress = uri.parse().unwrap();
        assert_eq!(serde_json::to_value(&address).unwrap(), expected);
        let back: MigrationAddress = serde_json::from_value(expected).unwrap();
        assert_eq!(back, address);
        assert_eq!(address.kind(), uri.split(':').next().unwrap());
    }

    #[rstest]
    #[case("", "unknown migration protocol: ")]
    #[case("/a/b", "unknown migration protocol: /a/b")]
    #[case("http://x", "unknown migration protocol: http://x")]
    #[case("file:", "migration URI 'file:' is not of the form file:PATH[,offset=N]")]
    #[case("file:a,offset=x", "file URI 'file:a,offset=x' has bad offset 'x'")]
    #[case("file:a,offset=", "file URI 'file:a,offset=' has bad offset ''")]
    #[case(
        "file:a,offset=99999999t",
        "file URI 'file:a,offset=99999999t' has bad offset '99999999t'"
    )]
    #[case("file:a,offset=1é", "file URI 'file:a,offset=1é' has bad offset '1é'")]
    #[case("tcp:host", "migration URI 'tcp:host' is not of the form tcp:HOST:PORT[,OPTION]...")]
    #[case("tcp:h:1,x", "migration URI 'tcp:h:1,x' is not of the form tcp:HOST:PORT[,OPTION]...")]
    #[case("exec:", "migration URI 'exec:' is not of the form exec:COMMAND")]
    fn rejects_invalid_uris(#[case] uri: &str, #[case] expected: &str) {
        assert_eq!(uri.parse::<MigrationAddress>().unwrap_err().to_string(), expected);
    }
}

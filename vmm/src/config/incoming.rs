//! `--incoming`: where the state of a guest comes from.

use std::path::PathBuf;
use std::str::FromStr;

use cpr_qmp::address::{MigrationAddress, MigrationChannel, MigrationChannelType};

use super::peer_address::{PeerAddress, unix_path};
use crate::address::AddressError;

/// Where the state of a guest comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Wait for `migrate-incoming`.
    Defer,
    /// Load this file at once.
    File(PathBuf),
    /// Wait for another process on two channels (`cpr-transfer`).
    Transfer(TransferChannels),
    /// Wait for another process on one, over which RAM comes too (`normal`).
    Peer(PeerAddress),
}

/// The two channels of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferChannels {
    /// The channel of device and vCPU state.
    pub main: MainChannel,
    /// The socket of the CPR state and the descriptors.
    pub cpr: PathBuf,
}

/// A channel of device and vCPU state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MainChannel {
    /// A file that the old process writes.
    File(PathBuf),
    /// A socket on which the new process listens.
    Unix(PathBuf),
}

/// One value of `--incoming`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IncomingOption {
    /// Wait for `migrate-incoming`.
    Defer,
    /// The main channel.
    Main(MainChannel),
    /// The cpr channel.
    Cpr(PathBuf),
    /// A channel that cannot be the main one of `cpr-transfer`.
    Peer(PeerAddress),
}

/// Errors from values of `--incoming` that do not fit each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncomingError {
    /// There is no main channel.
    #[error("--incoming has a cpr channel, but no main channel: add --incoming unix:PATH")]
    NoMain,
    /// A TCP channel is combined with another.
    #[error("--incoming tcp:ADDRESS:PORT cannot be combined with another --incoming")]
    Tcp,
    /// A channel is given twice.
    #[error("--incoming has more than one {0} channel")]
    Twice(&'static str),
    /// `defer` is combined with a channel.
    #[error("--incoming defer cannot be combined with another --incoming")]
    Deferred,
}

impl Incoming {
    /// Combines the values of all options.
    pub fn combine(options: &[IncomingOption]) -> Result<Option<Self>, IncomingError> {
        let (mut main, mut cpr) = (None, None);
        for option in options {
            match option {
                IncomingOption::Defer if options.len() > 1 => return Err(IncomingError::Deferred),
                IncomingOption::Defer => return Ok(Some(Self::Defer)),
                IncomingOption::Peer(_) if options.len() > 1 => return Err(IncomingError::Tcp),
                IncomingOption::Peer(peer) => return Ok(Some(Self::Peer(peer.clone()))),
                IncomingOption::Main(_) if main.is_some() => {
                    return Err(IncomingError::Twice("main"));
                }
                IncomingOption::Cpr(_) if cpr.is_some() => return Err(IncomingError::Twice("cpr")),
                IncomingOption::Main(channel) => main = Some(channel.clone()),
                IncomingOption::Cpr(path) => cpr = Some(path.clone()),
            }
        }
        match (main, cpr) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(IncomingError::NoMain),
            (Some(MainChannel::File(path)), None) => Ok(Some(Self::File(path))),
            (Some(MainChannel::Unix(path)), None) => Ok(Some(Self::Peer(PeerAddress::Unix(path)))),
            (Some(main), Some(cpr)) => Ok(Some(Self::Transfer(TransferChannels { main, cpr }))),
        }
    }
}

impl FromStr for IncomingOption {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || AddressError {
            given: text.to_owned(),
            expected: "file:PATH, unix:PATH, tcp:ADDRESS:PORT, defer, or a channel of cpr-transfer as \
                       JSON",
        };
        match text.split_once(':') {
            _ if text.starts_with('{') => {
                let channel = serde_json::from_str(text).map_err(|_| wrong())?;
                channel_of(&channel).ok_or_else(wrong)
            }
            None if text == "defer" => Ok(Self::Defer),
            Some(("file", path)) if !path.is_empty() => {
                Ok(Self::Main(MainChannel::File(path.into())))
            }
            Some(("unix", path)) if !path.is_empty() => {
                Ok(Self::Main(MainChannel::Unix(path.into())))
            }
            Some(("tcp", _)) => {
                let address: Option<MigrationAddress> = text.parse().ok();
                let peer = address.and_then(|address| PeerAddress::of(&address).ok());
                peer.map(Self::Peer).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

fn channel_of(channel: &MigrationChannel) -> Option<IncomingOption> {
    match channel.channel_type {
        MigrationChannelType::Main => main_channel(&channel.addr).map(IncomingOption::Main),
        MigrationChannelType::Cpr => unix_path(&channel.addr).map(IncomingOption::Cpr),
    }
}

/// Returns the main channel at `address`, if it is of a supported kind.
pub fn main_channel(address: &MigrationAddress) -> Option<MainChannel> {
    match address {
        MigrationAddress::File(file)
            if file.offset == 0 && !file.filename.starts_with("/dev/fdset/") =>
        {
            Some(MainChannel::File(file.filename.clone().into()))
        }
        other => unix_path(other).map(MainChannel::Unix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPR: &str =
        r#"{"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"/c"}}"#;
    const MAIN: &str =
        r#"{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":"/m"}}"#;

    fn combined(options: &[&str]) -> Result<Option<Incoming>, String> {
        let options: Vec<_> = options.iter().map(|text| text.parse().unwrap()).collect();
        Incoming::combine(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn channels_combine_in_any_order() {
        let transfer = |main| Incoming::Transfer(TransferChannels { main, cpr: "/c".into() });
        let unix = transfer(MainChannel::Unix("/m".into()));
        for options in [[CPR, MAIN], [MAIN, CPR], ["unix:/m", CPR]] {
            assert_eq!(combined(&options), Ok(Some(unix.clone())));
        }
        let file = transfer(MainChannel::File("/m".into()));
        assert_eq!(combined(&["file:/m", CPR]), Ok(Some(file)));
        assert_eq!(combined(&["file:/m"]), Ok(Some(Incoming::File("/m".into()))));
        assert_eq!(combined(&["defer"]), Ok(Some(Incoming::Defer)));
        let unix = Incoming::Peer(PeerAddress::Unix("/m".into()));
        assert_eq!(combined(&["unix:/m"]), Ok(Some(unix.clone())));
        assert_eq!(combined(&[MAIN]), Ok(Some(unix)));
        let tcp = Incoming::Peer(PeerAddress::Tcp("127.0.0.1:1".parse().unwrap()));
        assert_eq!(combined(&["tcp:127.0.0.1:1"]), Ok(Some(tcp)));
        assert_eq!(combined(&[]), Ok(None));
    }

    #[test]
    fn rejects_channels_that_do_not_fit() {
        const TCP: &str = "tcp:127.0.0.1:1";
        for options in [&[CPR] as &[_], &[CPR, CPR], &[MAIN, MAIN], &["defer", CPR], &[TCP, CPR]] {
            combined(options).unwrap_err();
        }
        for option in [
            "unix:",
            "{}",
            "tcp:1",
            "tcp:name:1",
            "tcp:127.0.0.1:",
            &CPR.replace("unix", "fd"),
            &CPR.replace("/c", ""),
        ] {
            option.parse::<IncomingOption>().unwrap_err();
        }
    }
}

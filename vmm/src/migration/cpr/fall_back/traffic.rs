//! Traffic on the sockets of QMP's clients since the CPR state was written from which another
//! process continues. It is counted so that each client gets every reply exactly once.

use std::os::fd::RawFd;
use std::sync::Arc;

use nix::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::counted_io::CountedIo;
use crate::qmp::ServerState;
use crate::sys;

/// The traffic of each client, by its number, and the generation of the CPR state it follows.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// The generation of the CPR state.
    pub generation: u64,
    /// The clients.
    pub clients: Vec<(u64, Arc<CountedIo>)>,
}

/// Client number, bytes sent, and the number of received bytes that follow.
type Header = [u64; 3];

impl Traffic {
    /// Writes the traffic to a memfd, which is truncated first. Async-signal-safe.
    ///
    /// # Safety
    /// No thread may use the sockets any more.
    pub(super) unsafe fn write(&self, to: RawFd) -> Result<(), Errno> {
        sys::truncate(to)?;
        for (client, exact) in &self.clients {
            // SAFETY: the caller's promise.
            let went = unsafe { exact.went(self.generation) };
            let header: Header = [*client, went.sent, went.received.len() as u64];
            sys::write_all(to, header.as_bytes())?;
            sys::write_all(to, went.received)?;
        }
        Ok(())
    }
}

/// Updates `state` by the traffic that was written. A truncated record at the end is ignored.
pub fn apply_traffic(state: &mut ServerState, mut written: &[u8]) {
    while let Ok((header, rest)) = Header::read_from_prefix(written) {
        let [client, sent, length] = header;
        let Some((received, rest)) = rest.split_at_checked(length as usize) else { return };
        state.apply_traffic(client, sent as usize, received);
        written = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use nix::sys::memfd::MFdFlags;

    use super::*;
    use crate::qmp::ConnectionState;

    #[test]
    fn traffic_is_neither_sent_nor_received_again() {
        let client = |id| ConnectionState {
            fd: String::new(),
            id,
            negotiated: true,
            pending_input: b"be".to_vec(),
            skipping: None,
            pending_output: b"12345".to_vec(),
            in_flight: None,
            ended: false,
        };
        let connections = vec![client(3), client(4)];
        let mut state = ServerState { connections, ..ServerState::default() };
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let [one, two] = [16, 16].map(|most| Arc::new(CountedIo::new(most)));
        for exact in [&one, &two] {
            exact.copied(9);
        }
        one.send(ours.as_fd(), b"123").unwrap();
        theirs.write_all(b"fore").unwrap();
        one.receive(ours.as_fd(), 16).unwrap();
        let traffic = Traffic { generation: 9, clients: vec![(3, one), (4, two)] };
        let memfd: File = crate::memfd::create(c"test", MFdFlags::empty()).unwrap().into();
        // SAFETY: there is one thread.
        unsafe { traffic.write(memfd.as_raw_fd()) }.unwrap();
        let mut written = vec![0; memfd.metadata().unwrap().len() as usize];
        memfd.read_exact_at(&mut written, 0).unwrap();
        apply_traffic(&mut state, &written);
        let seen = |state: &ServerState, at: usize| {
            let client = &state.connections[at];
            (client.pending_input.clone(), client.pending_output.clone())
        };
        assert_eq!(seen(&state, 0), (b"before".to_vec(), b"45".to_vec()));
        assert_eq!(seen(&state, 1), (b"be".to_vec(), b"12345".to_vec()));
        apply_traffic(&mut state, &written[..30]);
    }
}

//! Requirements of several checks for a VM that has moved to the process of a new VMM:
//! what the former VMM must have shown, and how the new one's descriptors follow from its.

use std::collections::BTreeMap;

use super::diff::Difference;
use super::handover::Transfer;
use crate::observe::fds::{Descriptor, FdTable};
use crate::observe::files::Files;
use crate::observe::qmp::label;
use crate::scenario::Mode;

/// Prefix of the targets of memfds.
const MEMFD: &str = "/memfd:";

/// The highest of the standard descriptors, which an operator gives to each VMM.
const STANDARD: i32 = 2;

/// The passes in which RAM is copied, as a pattern of the check `events`.
pub const PASSES: &str = "[MIGRATION_PASS]*";

/// The events of the former VMM in a completed update of a guest that ran, if the guest is stopped
/// first; one in brackets is optional.
const STOPPED_FIRST: [&str; 6] = [
    "MIGRATION(setup)",
    "STOP",
    "MIGRATION(active)",
    "[MIGRATION_PASS]",
    "MIGRATION(device)",
    "MIGRATION(completed)",
];

/// The same if RAM is copied while the guest runs.
const COPIED_FIRST: [&str; 7] = [
    "MIGRATION(setup)",
    "MIGRATION(active)",
    "MIGRATION_PASS",
    PASSES,
    "STOP",
    "MIGRATION(device)",
    "MIGRATION(completed)",
];

/// The events of the new VMM: its clients may connect after the guest has resumed.
const NEW: [&str; 1] = ["[RESUME]"];

/// Returns the patterns of the events that the former VMM must have sent in an update of this mode.
pub fn former_events(mode: Mode, ran: bool) -> Vec<&'static str> {
    let all: &[_] = if mode == Mode::Normal { &COPIED_FIRST } else { &STOPPED_FIRST };
    all.iter().copied().filter(|event| ran || *event != "STOP").collect()
}

/// Returns the patterns of the events that the new VMM must have sent.
pub fn new_events(ran: bool) -> &'static [&'static str] {
    if ran { &NEW } else { &[] }
}

/// Checks that both clients of the former VMM saw the same events.
pub fn same_events(transfer: &Transfer) -> Result<(), String> {
    let theirs = transfer.second_client.as_ref();
    let theirs = theirs.map_err(|why| format!("the second client of the former VMM: {why}"))?;
    let labels = |events: &[_]| -> Vec<String> { events.iter().map(label).collect() };
    let (ours, theirs) = (labels(&transfer.events), labels(theirs));
    if ours == theirs {
        return Ok(());
    }
    let difference = Difference::of(&ours, &theirs);
    Err(format!(
        "the second client of the former VMM saw other events than the first: {}\n{}",
        difference.summary(),
        difference.unified()
    ))
}

/// The descriptors of a VMM, its files, and device and inode of its guest's RAM.
pub type Owned<'a> = (&'a FdTable, &'a Files, Option<(u64, u64)>);

/// Returns the differences between the descriptors of a former VMM, whose files are `then`, and of
/// the new one, whose files are `now`: as many of each kind, whatever their numbers. In a
/// `cpr-transfer` a memfd must be the same file, since it is memory that was handed over; the check
/// `ram` judges that of guest RAM, which is the last part of each. `elsewhere` says what else another
/// check judges.
pub fn descriptors(
    mode: Mode,
    (before, then, old_ram): Owned<'_>,
    (after, now, new_ram): Owned<'_>,
    elsewhere: impl Fn(&Descriptor) -> bool,
) -> Vec<(String, usize, usize)> {
    let kinds = |table: &FdTable, files: &Files, ram: Option<(u64, u64)>| {
        let kind = |fd: &Descriptor| match ram == Some(fd.inode) {
            true => "of guest RAM".to_owned(),
            false => kind(mode, fd, files),
        };
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fd in table.iter().filter(|fd| fd.number > STANDARD && !elsewhere(fd)) {
            *kinds.entry(kind(fd)).or_default() += 1;
        }
        kinds
    };
    let (old, new) = (kinds(before, then, old_ram), kinds(after, now, new_ram));
    let all: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let count = |table: &BTreeMap<String, usize>, kind| table.get(kind).copied().unwrap_or(0);
    let compared = all.into_iter().map(|kind| (kind, count(&old, kind), count(&new, kind)));
    compared.filter(|(_, was, is)| was != is).map(|(kind, w, i)| (kind.clone(), w, i)).collect()
}

/// What a descriptor is, whatever its number and the number of its VMM.
fn kind(mode: Mode, fd: &Descriptor, files: &Files) -> String {
    let inherited = if fd.close_on_exec { "" } else { " without close-on-exec" };
    let kind = match fd.socket_path.as_deref() {
        Some("") => "of socket pairs".to_owned(),
        Some(path) => files.plain_path(path),
        None if fd.target.starts_with(MEMFD) && mode == Mode::CprTransfer => {
            format!("{} inode {}", fd.target, fd.inode.1)
        }
        None if fd.is_anonymous() => fd.target.clone(),
        // The number of a pipe or of another socket is its inode.
        None => match fd.target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => files.plain_path(&fd.target),
        },
    };
    format!("{kind}{inherited}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(suffix: &str) -> Files {
        let file = |name: &str| format!("/w/{name}");
        Files {
            kernel: file("guest"),
            initrd: None,
            ram: file("ram"),
            qmp: file(&format!("qmp{suffix}.sock")),
            serial: file("serial.log"),
            serial_socket: file(&format!("serial{suffix}.sock")),
            log: file(&format!("vmm{suffix}.log")),
            pid_file: file(&format!("vmm{suffix}.pid")),
            suffix: suffix.to_owned(),
        }
    }

    /// Their numbers begin after those of the standard descriptors.
    fn table(fds: &[(&str, u64)]) -> FdTable {
        let fd = |(number, (target, inode)): (i32, &(&str, u64))| {
            let socket = target.strip_prefix("unix ");
            let fd = Descriptor {
                number,
                target: socket.map_or((*target).to_owned(), |_| format!("socket:[{inode}]")),
                inode: (1, *inode),
                size: 0,
                flags: 0o2,
                close_on_exec: true,
                offset: 0,
                socket_path: socket.map(str::to_owned),
            };
            (number, fd)
        };
        FdTable((3..).zip(fds).map(fd).collect())
    }

    fn differences(mode: Mode, after: &[(&str, u64)]) -> String {
        let before = table(&[
            ("/memfd:ram (deleted)", 1),
            ("/memfd:rom (deleted)", 6),
            ("unix /w/qmp.sock", 2),
            ("unix /w/qmp.sock-2", 3),
            ("/w/vmm.pid", 4),
            ("anon_inode:[eventpoll]", 5),
        ]);
        let (first, third) = (files(""), files("-3"));
        let old = (&before, &first, Some((1, 1)));
        let found = descriptors(mode, old, (&table(after), &third, Some((1, 1))), |_| false);
        let text = found.into_iter().map(|(kind, was, is)| format!("{kind}: {was}, {is}"));
        text.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn descriptors_are_compared_whatever_their_numbers() {
        let same = [
            ("anon_inode:[eventpoll]", 5),
            ("unix /w/qmp-3.sock-2", 8),
            ("/w/vmm-3.pid", 9),
            ("/memfd:ram (deleted)", 1),
            ("unix /w/qmp-3.sock", 7),
            ("/memfd:rom (deleted)", 6),
        ];
        assert_eq!(differences(Mode::CprTransfer, &same), "");
        let leaked = [&same[..], &[("unix /w/cpr-3.sock", 10)]].concat();
        assert_eq!(differences(Mode::CprTransfer, &leaked), "/w/cpr-3.sock: 0, 1");
        let copied = [&same[..5], &[("/memfd:rom (deleted)", 9)]].concat();
        let told = "/memfd:rom (deleted) inode 6: 1, 0; /memfd:rom (deleted) inode 9: 0, 1";
        assert_eq!(differences(Mode::CprTransfer, &copied), told);
        assert_eq!(differences(Mode::Normal, &copied), "");
    }

    #[test]
    fn a_stopped_guest_is_neither_stopped_nor_resumed() {
        for mode in [Mode::CprTransfer, Mode::CprReboot, Mode::Normal] {
            let stops = |ran| former_events(mode, ran).contains(&"STOP");
            assert!(stops(true) && !stops(false));
        }
        assert_eq!((new_events(true), new_events(false)), (&NEW[..], &[][..]));
    }
}

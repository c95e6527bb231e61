//! Checks that the descriptor table is unchanged: no descriptor missing, new or different.

use std::collections::BTreeMap;

use super::diff::Difference;
use super::{Check, Scene, Transfer, transferred};
use crate::backend::{AcrossExec, Dialect};
use crate::observe::fds::{Descriptor, FdTable, VM};
use crate::observe::observation::Observation;
use crate::observe::poll::{self, Deadline};
use crate::scenario::Keeper;

/// The `fds` check.
pub const CHECK: Check = Check {
    name: "fds",
    claim: "the same descriptors with the same numbers, targets, inodes, flags and offsets; in a new process as many of every kind, and in a transfer the same memfds",
    run,
};

/// Prefix of the targets of a keeper's memfds.
const OF_KEEPER: &str = "/memfd:cpr-";

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before else { return Ok(()) };
    if let Some(transfer) = scene.handover.transfer() {
        return of_new_vmm(scene, before, transfer);
    }
    let ram = before.ram.file.as_ref().map(|fd| fd.number);
    poll_table(scene, |now| {
        let recreated = Recreated {
            ram,
            dialect: scene.dialect,
            // Each process prepares what its next keeper needs.
            keeper: (scene.vm.keeper == Some(Keeper::On)).then_some(scene.after.executable.inode),
        };
        let differences = compare(&before.fds, scene.fds_of_build, now, recreated);
        if differences.is_empty() { Ok(()) } else { Err(describe(&differences)) }
    })
    .map(|judged| {
        // The next step is compared with the table that passed, not with the unsettled one.
        scene.settled.borrow_mut().fds = judged;
    })
}

/// Checks the descriptors of a new VMM; those of the former one are gone with its process.
fn of_new_vmm(scene: &Scene<'_>, before: &Observation, transfer: &Transfer) -> Result<(), String> {
    let then = scene.fds_of_build.unwrap_or(&before.fds);
    let state = scene.dialect.exec_state.state;
    // See `compare`. What a VMM needs for its keeper is its own.
    let elsewhere =
        |fd: &Descriptor| [VM, state, OF_KEEPER].iter().any(|prefix| fd.target.starts_with(prefix));
    let ram = |seen: &Observation| seen.ram.file.as_ref().map(|fd| fd.inode);
    let old = (then, &transfer.files, ram(before));
    let judged = poll_table(scene, |now| {
        let new = (now, scene.files, ram(scene.after));
        let differences = transferred::descriptors(transfer.mode, old, new, elsewhere);
        let told: Vec<String> = differences
            .iter()
            .map(|(kind, was, is)| format!("there were {was} descriptors {kind}, now {is}"))
            .collect();
        if told.is_empty() { Ok(()) } else { Err(told.join("; ")) }
    })?;
    scene.settled.borrow_mut().fds = judged;
    Ok(())
}

/// A difference between two descriptor tables.
#[derive(Debug)]
struct Changed {
    /// What differs.
    text: String,
    /// The row of the first table.
    was: Option<String>,
    /// The row of the second table.
    is: Option<String>,
}

/// Describes one difference in a line, and shows several as rows that are gone or new.
fn describe(differences: &[Changed]) -> String {
    match differences {
        [only] => only.text.clone(),
        all => {
            let rows = |row: fn(&Changed) -> &Option<String>| -> Vec<&String> {
                all.iter().filter_map(|change| row(change).as_ref()).collect()
            };
            let rows = Difference::of(&rows(|change| &change.was), &rows(|change| &change.is));
            let text = all.first().map_or("", |change| &change.text);
            format!("{} differences, the first: {text}\n{}", all.len(), rows.unified())
        }
    }
}

/// A descriptor with everything that is compared.
fn row(fd: &Descriptor) -> String {
    let close_on_exec = if fd.close_on_exec { " cloexec" } else { "" };
    let Descriptor { inode: (_, inode), flags, offset, .. } = fd;
    format!("{fd} inode {inode} flags {flags:o}{close_on_exec} offset {offset}")
}

/// Polls the descriptor table until `look` accepts it. Returns the accepted table unless it is the
/// observation's own; fails with the last complaint at the deadline.
pub(super) fn poll_table(
    scene: &Scene<'_>,
    look: impl Fn(&FdTable) -> Result<(), String>,
) -> Result<Option<FdTable>, String> {
    let mut complaint = match look(&scene.after.fds) {
        Ok(()) => return Ok(None),
        Err(complaint) => complaint,
    };
    let pleased = poll::until(Deadline::after(scene.patience.settle), || {
        let read = FdTable::read(scene.pid()).map_err(|e| e.to_string());
        match read.and_then(|now| look(&now).map(|()| now)) {
            Ok(judged) => Some(judged),
            Err(now) => {
                complaint = now;
                None
            }
        }
    });
    pleased.map(Some).ok_or(complaint)
}

/// Tells which descriptors a new process image creates again.
#[derive(Clone, Copy)]
struct Recreated {
    /// The descriptor of RAM, which is inherited.
    ram: Option<i32>,
    dialect: Dialect,
    /// The inode of the VMM's executable, if the VM always has a keeper: a descriptor of it is kept
    /// ready.
    keeper: Option<(u64, u64)>,
}

impl Recreated {
    fn has(&self, fd: &Descriptor) -> bool {
        let of_keeper = self
            .keeper
            .is_some_and(|binary| fd.target.starts_with(OF_KEEPER) || fd.inode == binary);
        let all = self.dialect.across_exec == AcrossExec::Recreated && Some(fd.number) != self.ram;
        fd.is_anonymous() || fd.is_socket_pair() || fd.target == "/dev/kvm" || of_keeper || all
    }
}

/// Returns the differences from `before` to `after`. `then` is the last table of the build that
/// runs now, if it ever ran this VM.
fn compare(
    before: &FdTable,
    then: Option<&FdTable>,
    after: &FdTable,
    recreated: Recreated,
) -> Vec<Changed> {
    let Recreated { ram, dialect, .. } = recreated;
    let mut differences = Vec::new();
    let rebuilt = |fd: &Descriptor| recreated.has(fd);
    // The check `kvm` counts VMs, `leftovers` looks for leftover state.
    let judged_elsewhere = |fd: &Descriptor| {
        fd.target.starts_with(VM) || fd.target.starts_with(dialect.exec_state.state)
    };
    let kept = |table: &FdTable| -> BTreeMap<i32, Descriptor> {
        let kept = table.iter().filter(|fd| !rebuilt(fd) && !judged_elsewhere(fd));
        kept.map(|fd| (fd.number, fd.clone())).collect()
    };
    let (old, new) = (kept(before), kept(after));
    for fd in old.values() {
        match new.get(&fd.number) {
            None => differences.push(Changed {
                text: format!("descriptor {fd} is gone"),
                was: Some(row(fd)),
                is: None,
            }),
            Some(now) => {
                let text = changed(fd, now, Some(fd.number) == ram);
                let (was, is) = (Some(row(fd)), Some(row(now)));
                differences.extend(text.map(|text| Changed { text, was, is }));
            }
        }
    }
    let more = new.values().filter(|fd| !old.contains_key(&fd.number));
    differences.extend(more.map(|fd| Changed {
        text: format!("descriptor {fd} is new"),
        was: None,
        is: Some(row(fd)),
    }));

    // Descriptors that a new process image creates have no identity: only their kinds and numbers
    // must agree, and only within one build, since another build may need more or fewer.
    let Some(then) = then else { return differences };
    let kinds =
        |table: &FdTable| kinds(table.iter().filter(|fd| rebuilt(fd) && !judged_elsewhere(fd)));
    let (old, new) = (kinds(then), kinds(after));
    let all: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for kind in all {
        let count = |table: &BTreeMap<String, usize>| table.get(kind).copied().unwrap_or(0);
        let (was, is) = (count(&old), count(&new));
        if was != is {
            let row = |count: usize| (count > 0).then(|| format!("{count} {kind}"));
            differences.push(Changed {
                text: format!("there were {was} descriptors {kind}, now {is}"),
                was: row(was),
                is: row(is),
            });
        }
    }
    differences
}

fn changed(old: &Descriptor, new: &Descriptor, is_ram: bool) -> Option<String> {
    // The check `ram` checks that RAM is the same file.
    if !is_ram && (old.target != new.target || old.inode != new.inode) {
        return Some(format!(
            "descriptor {old} (inode {}) became {} (inode {})",
            old.inode.1, new.target, new.inode.1
        ));
    }
    if old.close_on_exec != new.close_on_exec {
        let now = if new.close_on_exec { "set" } else { "cleared" };
        return Some(format!("close-on-exec of descriptor {old} is now {now}"));
    }
    if old.flags != new.flags {
        return Some(format!(
            "flags of descriptor {old} were {:o}, are {:o}",
            old.flags, new.flags
        ));
    }
    // Logs grow.
    (new.offset < old.offset).then(|| {
        format!("offset of descriptor {old} went back from {} to {}", old.offset, new.offset)
    })
}

fn kinds<'a>(fds: impl Iterator<Item = &'a Descriptor>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for fd in fds {
        let inherited = if fd.close_on_exec { "" } else { " without close-on-exec" };
        let kind = match fd.socket_path.as_deref() {
            Some("") => "of socket pairs",
            Some(path) => path,
            // The number of a pipe or of another socket is its inode.
            None if fd.is_anonymous() => &fd.target,
            None => fd.target.split_once(":[").map_or(&*fd.target, |(kind, _)| kind),
        };
        *kinds.entry(format!("{kind}{inherited}")).or_default() += 1;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpr_vmm::DIALECT;
    use rstest::rstest;

    fn fd(number: i32, target: &str, inode: u64) -> Descriptor {
        Descriptor {
            number,
            target: target.into(),
            inode: (1, inode),
            size: 0,
            flags: 0o2,
            close_on_exec: true,
            offset: 10,
            socket_path: None,
        }
    }

    fn texts(differences: &[Changed]) -> String {
        differences.iter().map(|change| change.text.as_str()).collect::<Vec<_>>().join("; ")
    }

    fn recreated(ram: Option<i32>) -> Recreated {
        Recreated { ram, dialect: DIALECT, keeper: None }
    }

    #[test]
    fn descriptors_ready_for_a_keeper_are_counted() {
        let before = table(&[fd(5, "/memfd:cpr-commit", 1), fd(6, "/vmm", 2), fd(7, "/log", 3)]);
        let after = [fd(8, "/memfd:cpr-commit", 4), fd(9, "/vmm", 2), fd(7, "/log", 3)];
        let on = Recreated { keeper: Some((1, 2)), ..recreated(None) };
        let look = |after: &[Descriptor], recreated| {
            texts(&compare(&before, Some(&before), &table(after), recreated))
        };
        assert_eq!(look(&after, on), "");
        let leaked = [&after[..], &[fd(5, "/memfd:cpr-commit", 1)]].concat();
        assert_eq!(look(&leaked, on), "there were 1 descriptors /memfd:cpr-commit, now 2");
        assert!(look(&after, recreated(None)).contains("is gone"));
    }

    fn table(fds: &[Descriptor]) -> FdTable {
        FdTable(fds.iter().map(|fd| (fd.number, fd.clone())).collect())
    }

    fn differences(before: &[Descriptor], after: &[Descriptor]) -> String {
        let before = table(before);
        texts(&compare(&before, Some(&before), &table(after), recreated(Some(3))))
    }

    #[rstest]
    #[case::rebuilt_under_another_number(
        &[fd(5, "anon_inode:[eventfd]", 1)],
        &[fd(9, "anon_inode:[eventfd]", 1)]
    )]
    #[case::talks_to_itself(
        &[Descriptor { socket_path: Some("".into()), ..fd(5, "socket:[1]", 1) }],
        &[Descriptor { socket_path: Some("".into()), ..fd(6, "socket:[2]", 2) }]
    )]
    #[case::ram_is_judged_elsewhere(&[fd(3, "/memfd:pc.ram", 1)], &[fd(3, "/memfd:pc.ram", 2)])]
    #[case::logs_grow(&[fd(4, "/log", 1)], &[Descriptor { offset: 11, ..fd(4, "/log", 1) }])]
    fn accepts_equivalent_tables(#[case] before: &[Descriptor], #[case] after: &[Descriptor]) {
        assert_eq!(differences(before, after), "");
    }

    #[test]
    fn recreated_descriptors_are_compared_by_kind_and_number() {
        let dialect = Dialect { across_exec: AcrossExec::Recreated, ..DIALECT };
        let socket = |number, inode, path: &str| Descriptor {
            socket_path: Some(path.into()),
            ..fd(number, &format!("socket:[{inode}]"), inode)
        };
        let before = [fd(3, "/memfd:ram", 1), fd(4, "/log", 2), socket(5, 3, "/qmp")];
        let after = [fd(3, "/memfd:ram", 1), fd(8, "/log", 2), socket(4, 9, "/qmp")];
        let look = |after: &[Descriptor]| {
            let before = table(&before);
            let recreated = Recreated { dialect, ..recreated(Some(3)) };
            texts(&compare(&before, Some(&before), &table(after), recreated))
        };
        assert_eq!(look(&after), "");
        let leaked = [&after[..], &[fd(9, "/log", 2)]].concat();
        assert_eq!(look(&leaked), "there were 1 descriptors /log, now 2");
        assert_eq!(look(&after[1..]), "descriptor 3 -> /memfd:ram is gone");
    }

    #[test]
    fn recreated_descriptors_of_another_build_are_not_compared() {
        let event = |number| fd(number, "anon_inode:[eventfd]", number as u64);
        let (before, after) = (table(&[event(5), event(6)]), table(&[event(5)]));
        let look = |then| texts(&compare(&before, then, &after, recreated(None)));
        assert_eq!(look(None), "");
        assert_eq!(look(Some(&after)), "");
        let leaked = "there were 2 descriptors anon_inode:[eventfd], now 1";
        assert_eq!(look(Some(&before)), leaked);
        let lost = texts(&compare(&table(&[fd(4, "/log", 1)]), None, &after, recreated(None)));
        assert_eq!(lost, "descriptor 4 -> /log is gone");
    }

    #[test]
    fn reports_every_difference() {
        let before = [
            fd(3, "/memfd:pc.ram", 1),
            fd(4, "/log", 2),
            fd(5, "socket:[3]", 3),
            fd(6, "/a", 4),
            fd(7, "anon_inode:[eventfd]", 5),
            fd(8, "/b", 6),
            fd(9, "/c", 7),
        ];
        let after = [
            Descriptor { close_on_exec: false, ..fd(3, "/memfd:pc.ram", 1) },
            Descriptor { offset: 3, ..fd(4, "/log", 2) },
            fd(5, "socket:[9]", 9),
            Descriptor { flags: 0o2002, ..fd(6, "/a", 4) },
            Descriptor { close_on_exec: false, ..fd(7, "anon_inode:[eventfd]", 5) },
            fd(9, "/c", 8),
            fd(10, "/d", 9),
        ];
        let (before, after) = (table(&before), table(&after));
        let all = compare(&before, Some(&before), &after, recreated(Some(3)));
        insta::assert_snapshot!(format!(
            "{}\n\n{}",
            texts(&all).replace("; ", "\n"),
            describe(&all)
        ));
    }
}

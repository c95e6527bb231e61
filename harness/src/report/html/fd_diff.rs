//! Renders the changes between the descriptor tables before and after a step.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::super::folder::Folder;
use super::parts::scrolling;

/// A line of the descriptor table, without size and offset, which change with use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    target: String,
    inode: String,
    flags: String,
}

/// A descriptor table.
#[derive(Debug, Default)]
struct Table {
    /// Descriptors with an identity that an update must preserve.
    lines: BTreeMap<i32, Line>,
    /// Number of descriptors of each kind that a new process recreates.
    recreated: BTreeMap<String, usize>,
}

/// A descriptor that changed.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    number: i32,
    was: Option<Line>,
    is: Option<Line>,
}

/// Renders the difference between the last observation and the one before the failing step, or else
/// the one after boot.
pub fn diff(folder: &Folder) -> Markup {
    let before = ["proc-before.txt", "proc-boot.txt"];
    let before = before.into_iter().find_map(|name| Some((name, folder.text(name)?)));
    let (Some((name, before)), Some(after)) = (before, folder.text("proc-after.txt")) else {
        return html! {};
    };
    let (before, after) = (table(&before), table(&after));
    let changes = changes(&before.lines, &after.lines);
    let counts = counts(&before.recreated, &after.recreated);
    let gone = changes.iter().filter(|change| change.was.is_some()).count();
    let kept = before.lines.len() - gone;
    let recreated: usize = after.recreated.values().sum();
    let since = if name == "proc-before.txt" { "before the step" } else { "boot" };
    html! {
        h4 { "Descriptors" }
        p {
            (kept) " of " (before.lines.len()) " descriptors with an identity are unchanged since "
            (since) "; " (recreated) " have no identity"
            @if counts.is_empty() { ", with the same number of each kind as before." }
            @else { ":" }
        }
        @if !counts.is_empty() {
            ul { @for (kind, was, is) in &counts { li { (kind) ": " (was) " before, " (is) " now" } } }
        }
        @if !changes.is_empty() {
            (scrolling("descriptors that changed", html! {
                table.diff {
                    thead { tr {
                        th.number scope="col" { "fd" } th scope="col" { "change" }
                        th scope="col" { "what" } th scope="col" { "inode" } th scope="col" { "flags" }
                    } }
                    tbody {
                        @for change in &changes {
                            @if let Some(was) = &change.was { (row(change, was, true)) }
                            @if let Some(is) = &change.is { (row(change, is, false)) }
                        }
                    }
                }
            }))
        }
    }
}

fn row(change: &Change, line: &Line, old: bool) -> Markup {
    let word = match (&change.was, &change.is) {
        (None, _) => "+ new",
        (_, None) => "− gone",
        _ if old => "− was",
        _ => "+ is",
    };
    html! {
        tr class=(if old { "removed" } else { "added" }) {
            td.number { (change.number) }
            td.nowrap { (word) } td { (line.target) } td { (line.inode) } td { (line.flags) }
        }
    }
}

fn changes(before: &BTreeMap<i32, Line>, after: &BTreeMap<i32, Line>) -> Vec<Change> {
    let mut numbers: Vec<&i32> = before.keys().chain(after.keys()).collect();
    numbers.sort();
    numbers.dedup();
    let change = |number: &i32| {
        let (was, is) = (before.get(number), after.get(number));
        let change = || Change { number: *number, was: was.cloned(), is: is.cloned() };
        (was != is).then(change)
    };
    numbers.into_iter().filter_map(change).collect()
}

/// Returns the kinds whose number changed, with the old and the new number.
fn counts(
    before: &BTreeMap<String, usize>,
    after: &BTreeMap<String, usize>,
) -> Vec<(String, usize, usize)> {
    let kinds: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let count = |table: &BTreeMap<String, usize>, kind| table.get(kind).copied().unwrap_or(0);
    let counts = kinds.into_iter().map(|k| (k.clone(), count(before, k), count(after, k)));
    counts.filter(|(_, was, is)| was != is).collect()
}

/// Parses the table in an observation; invalid lines are skipped.
fn table(text: &str) -> Table {
    let lines = text.lines().skip_while(|line| *line != "descriptors").skip(1);
    let mut table = Table::default();
    for (number, line) in lines.take_while(|line| !line.is_empty()).filter_map(line) {
        match made_anew(&line.target) {
            Some(kind) => *table.recreated.entry(kind.to_owned()).or_default() += 1,
            None => {
                let target = line.target.strip_suffix(" -").unwrap_or(&line.target).to_owned();
                table.lines.insert(number, Line { target, ..line });
            }
        }
    }
    table
}

/// Returns the kind of a descriptor without an identity; none if it has one.
fn made_anew(target: &str) -> Option<&str> {
    // Neither end of a pair is bound to a path.
    if target.starts_with("socket:") && !target.contains(' ') {
        return Some("socket pair");
    }
    let target = target.strip_suffix(" -").unwrap_or(target);
    (target.starts_with("anon_inode:") || target == "/dev/kvm").then_some(target)
}

fn line(text: &str) -> Option<(i32, Line)> {
    let (number, rest) = text.trim_start().split_once(' ')?;
    // The name of a target may contain anything.
    let (target, rest) = rest.rsplit_once(" inode ")?;
    let (inode, rest) = rest.split_once(" size ")?;
    let (_, flags) = rest.split_once(" flags ")?;
    let (flags, _) = flags.rsplit_once(" offset ")?;
    let target = target.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    Some((number.parse().ok()?, Line { target, inode: inode.into(), flags: flags.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::fds::{Descriptor, FdTable};

    fn text(descriptors: &[Descriptor]) -> String {
        let table = FdTable(descriptors.iter().map(|d| (d.number, d.clone())).collect());
        format!("status\n\ndescriptors\n{table}\nRAM\n")
    }

    #[test]
    fn only_changes_are_listed() {
        let file = Descriptor {
            number: 3,
            target: "/tmp/a b inode 7".into(),
            inode: (1, 2),
            size: 3,
            flags: 0o100002,
            close_on_exec: true,
            offset: 4,
            socket_path: None,
        };
        let socket = Descriptor {
            number: 5,
            target: "socket:[9]".into(),
            socket_path: Some("/run/qmp.sock".into()),
            ..file.clone()
        };
        let grown = Descriptor { size: 9, offset: 9, ..file.clone() };
        let leaky = Descriptor { close_on_exec: false, ..socket.clone() };
        let new = Descriptor { number: 7, ..file.clone() };
        let recreated = |number, target: &str, socket_path: Option<&str>| Descriptor {
            number,
            target: target.into(),
            socket_path: socket_path.map(str::to_owned),
            ..new.clone()
        };
        let (kvm, pair) = ("anon_inode:kvm-vm", Some(""));
        let before = [file, socket, recreated(8, kvm, None), recreated(9, "socket:[8]", pair)];
        let after =
            [grown, leaky, new.clone(), recreated(18, kvm, None), recreated(19, "/dev/kvm", None)];
        let (before, after) = (table(&text(&before)), table(&text(&after)));
        let line = |target: &str, flags: &str| {
            Some(Line { target: target.into(), inode: "1:2".into(), flags: flags.into() })
        };
        let socket = "socket:[9] /run/qmp.sock";
        assert_eq!(
            changes(&before.lines, &after.lines),
            [
                Change {
                    number: 5,
                    was: line(socket, "100002 cloexec"),
                    is: line(socket, "100002")
                },
                Change { number: 7, was: None, is: line("/tmp/a b inode 7", "100002 cloexec") },
            ]
        );
        assert_eq!(
            counts(&before.recreated, &after.recreated),
            [("/dev/kvm".to_owned(), 0, 1), ("socket pair".to_owned(), 1, 0)]
        );
    }
}

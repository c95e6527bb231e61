//! Facts about the memory mappings, by name, from one read of `/proc/PID/smaps`.

use std::collections::BTreeMap;
use std::fs;

use super::{UNREADABLE, counted, link, words};
use crate::observe::facts::Facts;

/// Fields that do not depend on which pages were touched.
const FIELDS: [&str; 5] = ["KernelPageSize", "MMUPageSize", "Locked", "ProtectionKey", "VmFlags"];

/// Mappings that grow, and whose size is ignored.
const GROWING: [&str; 2] = ["[heap]", "[stack]"];

/// Flags that an allocator chooses for its mappings: accounting, reserving, huge pages.
const OF_ALLOCATOR: [&str; 3] = ["ac", "nr", "nh"];

/// Name for mappings without one: memory of the allocator and stacks of threads.
const ANONYMOUS: &str = "anonymous";

/// Reads the mapping facts of process `pid`.
pub(super) fn read(pid: i32, facts: &mut Facts) {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps")) else {
        return facts.insert("mapping.all", UNREADABLE);
    };
    let executable = link(format!("/proc/{pid}/exe"));
    let mut mappings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for mapping in parse(&text) {
        let own = mapping.name == executable;
        let name = if own { "the executable" } else { mapping.name };
        let growing = GROWING.contains(&name) || mapping.is_private_memory();
        let mut value = String::new();
        if !growing {
            value = format!("{} at {} ", mapping.size(), mapping.offset);
        }
        let fields = mapping.fields.join(" ");
        let words = fields.split(' ').filter(|word| !growing || !OF_ALLOCATOR.contains(word));
        value.push_str(&words.collect::<Vec<_>>().join(" "));
        let item = format!("mapping.{name}.{}", mapping.permissions);
        let known = mappings.entry(item).or_default();
        // Of the allocator's mappings only the kinds are recorded.
        if !growing || !known.contains(&value) {
            known.push(value);
        }
    }
    for (item, values) in mappings {
        facts.insert(item, counted(values));
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    addresses: &'a str,
    permissions: &'a str,
    offset: &'a str,
    name: &'a str,
    fields: Vec<String>,
}

impl Mapping<'_> {
    fn size(&self) -> String {
        let ends = self.addresses.split_once('-').map(|(from, to)| {
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            number(to).saturating_sub(number(from))
        });
        format!("{} bytes", ends.unwrap_or(0))
    }

    /// Whether it is the allocator's, a stack, or a stack's guard.
    fn is_private_memory(&self) -> bool {
        self.name == ANONYMOUS && matches!(self.permissions, "rw-p" | "---p")
    }
}

/// Parses `smaps`; `procfs` would drop flags that it does not know.
fn parse(text: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        let key = line.split_whitespace().next().unwrap_or_default();
        match key.strip_suffix(':') {
            None => mappings.extend(begin(line)),
            Some(field) if FIELDS.contains(&field) => {
                if let Some(newest) = mappings.last_mut() {
                    // Soft-dirty: set by the kernel on new mappings and writes.
                    let value = words(line).replace(" sd", "");
                    newest.fields.push(value);
                }
            }
            Some(_) => {}
        }
    }
    mappings
}

fn begin(line: &str) -> Option<Mapping<'_>> {
    let mut words = line.splitn(6, ' ');
    let (addresses, permissions, offset) = (words.next()?, words.next()?, words.next()?);
    let (_device, _inode) = (words.next()?, words.next()?);
    let name = words.next().unwrap_or("").trim();
    let name = if name.is_empty() { ANONYMOUS } else { name };
    Some(Mapping { addresses, permissions, offset, name, fields: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-8f00 rw-s 00001000 00:01 4711                 /memfd:pc.ram (deleted)
Size:                  4 kB
KernelPageSize:        4 kB
Rss:                 100 kB
VmFlags: rd wr sh mr dd sd 
9000-a000 rw-p 00000000 00:00 0 
VmFlags: rd wr
";

    #[test]
    fn parses_mappings_without_volatile_fields() {
        let all = parse(SMAPS);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].name, all[0].size()), ("/memfd:pc.ram (deleted)", "4096 bytes".into()));
        assert_eq!(all[0].fields, ["KernelPageSize: 4 kB", "VmFlags: rd wr sh mr dd"]);
        assert!(all[1].is_private_memory() && !all[0].is_private_memory());
    }
}

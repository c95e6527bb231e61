//! The description of a VMM and its machine, which a rehearsal compares.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::version::CPR_VERSION;
use crate::config::{Config, Incoming};
use crate::devices::serial::SerialConfig;
use crate::devices::slots;
use crate::machine::{MachineConfig, SECTIONS};
use crate::memory::{PC_RAM, RamBlockInfo};
use crate::state::{Formats, known_versions, named, newest_common};

/// The identity of a VMM, what it can load, and the machine its arguments describe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The version of the CPR state it reads.
    pub cpr_version: u32,
    /// The oldest version of the saved state that it reads. Older VMMs read no other, and write it.
    pub state_version: u32,
    /// The newest version of the saved state that it reads. Older VMMs do not report this.
    #[serde(default)]
    pub newest_state_version: Option<u32>,
    /// The sections it loads, with their newest versions.
    pub sections: BTreeMap<String, u32>,
    /// The oldest versions that it loads of sections of which it loads several.
    #[serde(default)]
    pub oldest_sections: BTreeMap<String, u32>,
    /// RAM blocks that can be handed over.
    pub ram_blocks: Vec<RamBlockInfo>,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Connections to the outside, such as `serial` to `unix:/path`.
    pub devices: BTreeMap<String, String>,
    /// Whether it has the test device. Older VMMs, which always have it, do not report this.
    #[serde(default)]
    pub test_device: Option<bool>,
    /// The devices behind PCI, in the order of their slots. Older VMMs, which have none, do not
    /// report this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pci_devices: Vec<String>,
    /// Where it expects the saved state.
    pub incoming: IncomingPath,
    /// Whether it passes the commit point before it runs the guest (`keeper::commit`). Older
    /// binaries do not, and do not report this.
    #[serde(default)]
    pub commit_point: bool,
    /// Whether it also tries all steps of a take-over in a rehearsal, and reports the outcome.
    #[serde(default)]
    pub tries_everything: bool,
}

/// Where the saved state comes from (`--incoming`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IncomingPath {
    /// The option is absent.
    None,
    /// QMP names it later.
    Deferred,
    /// This file.
    File(PathBuf),
    /// Another process transfers it, which is another mode.
    Transfer,
}

impl Description {
    /// Creates the description of `config`.
    pub fn of(config: &Config) -> Self {
        let MachineConfig { memory, cpus, test_device, devices: pci, .. } = config.machine();
        let block = RamBlockInfo { name: PC_RAM.to_owned(), size: memory.size };
        let mut devices = BTreeMap::new();
        devices.insert("serial".to_owned(), serial(&config.serial));
        // Older VMMs compare these only.
        for (slot, device) in slots(&pci) {
            devices.insert(format!("pci.{slot}"), device.kind().to_owned());
        }
        if let Some(qmp) = &config.qmp {
            devices.insert("qmp".to_owned(), format!("unix:{}", qmp.0.display()));
        }
        Self {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cpr_version: CPR_VERSION,
            state_version: *known_versions().start(),
            newest_state_version: Some(*known_versions().end()),
            sections: SECTIONS.iter().map(|known| (known.name.to_owned(), known.newest)).collect(),
            oldest_sections: SECTIONS
                .iter()
                .filter(|known| known.oldest != known.newest)
                .map(|known| (known.name.to_owned(), known.oldest))
                .collect(),
            ram_blocks: if memory.share { vec![block] } else { Vec::new() },
            cpus,
            devices,
            test_device: Some(test_device),
            pci_devices: pci.iter().map(|device| device.kind().to_owned()).collect(),
            commit_point: true,
            incoming: match config.incoming() {
                None => IncomingPath::None,
                Some(Incoming::Defer) => IncomingPath::Deferred,
                Some(Incoming::File(path)) => IncomingPath::File(path),
                Some(Incoming::Transfer(_) | Incoming::Peer(_)) => IncomingPath::Transfer,
            },
            tries_everything: true,
        }
    }

    /// Returns why `new` cannot take over the VM that `self` describes, whose state goes to
    /// `channel`.
    pub fn difference(&self, new: &Self, channel: &Path) -> Option<String> {
        self.machine_difference(new)
            .or_else(|| self.pci_difference(new))
            .or_else(|| self.device_difference(new))
            .or_else(|| self.test_device_difference(new))
            .or_else(|| incoming_difference(&new.incoming, channel))
    }

    /// Returns why another process, `new`, cannot take over the VM that `self` describes. It has
    /// connections of its own.
    pub fn transfer_difference(&self, new: &Self) -> Option<String> {
        self.machine_difference(new)
            .or_else(|| self.pci_difference(new))
            .or_else(|| self.test_device_difference(new))
    }

    fn machine_difference(&self, new: &Self) -> Option<String> {
        self.version_difference(new).or_else(|| self.ram_difference(new)).or_else(|| {
            let (new, old) = (new.cpus, self.cpus);
            let s = if new == 1 { "" } else { "s" };
            (new != old).then(|| format!("describes {new} vCPU{s}, this VM has {old}"))
        })
    }

    fn version_difference(&self, new: &Self) -> Option<String> {
        let (old_cpr, new_cpr) = (self.cpr_version, new.cpr_version);
        if old_cpr != new_cpr {
            return Some(format!(
                "reads CPR state version {new_cpr}, this VM writes version {old_cpr}"
            ));
        }
        self.formats(new).err()
    }

    /// Returns the newest versions that this VMM writes and `new` reads.
    pub fn formats(&self, new: &Self) -> Result<Formats, String> {
        let (ours, theirs) = (self.state_versions(), new.state_versions());
        let state = newest_common(&ours, &theirs).ok_or_else(|| {
            let (ours, theirs) = (named(&ours), named(&theirs));
            format!("reads saved state {theirs}, this VM writes {ours}")
        })?;
        let mut formats = Formats { state, sections: BTreeMap::new() };
        for known in &SECTIONS {
            let (name, ours) = (known.name, known.versions());
            let Some(theirs) = new.section_versions(name) else {
                if known.optional {
                    continue;
                }
                return Err(format!("does not load section {name}, which this VM writes"));
            };
            let version = newest_common(&ours, &theirs).ok_or_else(|| {
                let (ours, theirs) = (named(&ours), named(&theirs));
                format!("loads section {name} {theirs}, this VM writes {ours}")
            })?;
            formats.sections.insert(name, version);
        }
        Ok(formats)
    }

    fn state_versions(&self) -> RangeInclusive<u32> {
        let oldest = self.state_version;
        oldest..=self.newest_state_version.unwrap_or(oldest)
    }

    fn section_versions(&self, name: &str) -> Option<RangeInclusive<u32>> {
        let newest = *self.sections.get(name)?;
        Some(self.oldest_sections.get(name).copied().unwrap_or(newest)..=newest)
    }

    fn ram_difference(&self, new: &Self) -> Option<String> {
        for old in &self.ram_blocks {
            let Some(new) = new.ram_blocks.iter().find(|block| block.name == old.name) else {
                return Some(format!("describes no shared RAM block {}", old.name));
            };
            if new.size != old.size {
                let (new, size) = (bytes(new.size), bytes(old.size));
                return Some(format!(
                    "describes {new} of RAM in block {}, this VM has {size}",
                    old.name
                ));
            }
        }
        let extra =
            new.ram_blocks.iter().find(|b| self.ram_blocks.iter().all(|o| o.name != b.name));
        extra
            .map(|block| format!("describes RAM block {}, which this VM does not have", block.name))
    }

    fn device_difference(&self, new: &Self) -> Option<String> {
        let names = self.devices.keys().chain(new.devices.keys());
        let said = |device: Option<&String>| device.map_or("none".to_owned(), String::clone);
        names.into_iter().find_map(|name| {
            let (old, new) = (self.devices.get(name), new.devices.get(name));
            (old != new)
                .then(|| format!("describes {name} as {}, this VM has {}", said(new), said(old)))
        })
    }
}

impl Description {
    fn pci_difference(&self, new: &Self) -> Option<String> {
        let said = |devices: &[String]| match devices {
            [] => "no --device".to_owned(),
            devices => {
                let each = devices.iter().map(|device| format!("--device {device}"));
                each.collect::<Vec<_>>().join(" ")
            }
        };
        let [old, new] = [&self.pci_devices, &new.pci_devices];
        (old != new).then(|| format!("has {}, this VM has {}", said(new), said(old)))
    }

    fn test_device_difference(&self, new: &Self) -> Option<String> {
        let [has, option] = match (self.test_device?, new.test_device?) {
            (true, false) => ["no test device, this VM has one", "on"],
            (false, true) => ["a test device, which this VM does not have", "off"],
            _ => return None,
        };
        Some(format!("describes {has}: use --test-device {option}"))
    }
}

fn incoming_difference(incoming: &IncomingPath, channel: &Path) -> Option<String> {
    match incoming {
        IncomingPath::None => Some(format!(
            "has no --incoming: it would boot a new guest; add --incoming file:{}",
            channel.display()
        )),
        IncomingPath::Deferred => None,
        IncomingPath::Transfer => Some(format!(
            "waits for cpr-transfer: for cpr-exec, use --incoming file:{} alone",
            channel.display()
        )),
        IncomingPath::File(path) if same_file(path, channel) => None,
        IncomingPath::File(path) => Some(format!(
            "loads file:{}, this update writes file:{}",
            path.display(),
            channel.display()
        )),
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    // The file may not exist yet; its directory does.
    let whole = |path: &Path| {
        path.canonicalize().ok().or_else(|| {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Some(parent.unwrap_or(Path::new(".")).canonicalize().ok()?.join(path.file_name()?))
        })
    };
    a == b || matches!((whole(a), whole(b)), (Some(a), Some(b)) if a == b)
}

fn serial(config: &SerialConfig) -> String {
    match config {
        SerialConfig::Null => "null".to_owned(),
        SerialConfig::Stdio => "stdio".to_owned(),
        SerialConfig::File(path) => format!("file:{}", path.display()),
        SerialConfig::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn bytes(size: u64) -> String {
    match size {
        _ if size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        _ => format!("{size} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rstest::rstest;

    use super::*;

    fn of(line: &str) -> Description {
        Description::of(&Config::try_parse_from(line.split(' ')).unwrap())
    }

    const VM: &str = "--memory 64M --cpus 2 --qmp unix:/q --serial unix:/s --kernel k";

    #[test]
    fn same_machine_has_no_difference() {
        let new = of(&format!("{VM} --incoming file:/state"));
        assert_eq!(of(VM).difference(&new, Path::new("/state")), None);
        let new = of(&format!("{VM} --incoming defer --paused --log debug"));
        assert_eq!(of(VM).difference(&new, Path::new("/state")), None);
    }

    #[rstest]
    #[case("", "")]
    #[case("64M", "128M")]
    #[case("64M", "64M,share=off")]
    #[case("--cpus 2", "--cpus 1")]
    #[case("--serial unix:/s", "--serial null")]
    #[case("--qmp unix:/q ", "")]
    #[case("--cpus 2", "--cpus 2 --device virtio-rng")]
    #[case("file:/state", "file:/other")]
    fn differences_are_named(#[case] from: &str, #[case] to: &str) {
        let full = format!("{VM} --incoming file:/state");
        let line = if from.is_empty() { VM.to_owned() } else { full.replace(from, to) };
        let text = of(VM).difference(&of(&line), Path::new("/state")).unwrap();
        let name = if from.is_empty() {
            "no_incoming".to_owned()
        } else {
            to.replace([' ', ':', '/', ',', '='], "_")
        };
        insta::assert_snapshot!(format!("difference_{name}"), text);
    }

    #[test]
    fn missing_file_equals_itself_by_another_path() {
        let here = std::env::current_dir().unwrap();
        let name = "a-state-that-is-not-there";
        assert!(same_file(Path::new(name), &here.join(name)));
        assert!(!same_file(Path::new(name), &here.join("another")));
    }

    #[test]
    fn ignores_test_device_of_vmm_that_does_not_report_it() {
        let old = Description { test_device: None, ..of(VM) };
        let new = of(&format!("{VM} --incoming file:/state --test-device on"));
        assert_eq!(old.difference(&new, Path::new("/state")), None);
        let older = Description { test_device: None, ..new.clone() };
        assert_eq!(of(VM).difference(&older, Path::new("/state")), None);
        let text =
            new.difference(&of(&format!("{VM} --incoming file:/state")), Path::new("/state"));
        assert_eq!(
            text.unwrap(),
            "describes no test device, this VM has one: use --test-device on"
        );
    }

    #[test]
    fn newest_versions_that_both_know_are_written() {
        let ours = of(VM);
        assert_eq!(ours.formats(&ours), Ok(Formats::newest(&SECTIONS)));
        let mut older = ours.clone();
        older.newest_state_version = None;
        older.oldest_sections.clear();
        older.sections.insert("devices".to_owned(), 1);
        older.sections.remove("board");
        let formats = ours.formats(&older).unwrap();
        assert_eq!(
            (formats.state, formats.section("devices"), formats.section("board")),
            (1, Some(1), None)
        );
        let mut newer = ours.clone();
        newer.newest_state_version = Some(99);
        newer.sections.insert("devices".to_owned(), 9);
        newer.oldest_sections.insert("devices".to_owned(), 2);
        assert_eq!(ours.formats(&newer), Ok(Formats::newest(&SECTIONS)));
    }

    #[test]
    fn versions_are_compared() {
        let old = of(VM);
        let channel = Path::new("/state");
        let mut new = of(&format!("{VM} --incoming file:/state"));
        new.sections.insert("vcpu".to_owned(), 99);
        let mut texts = vec![old.difference(&new, channel).unwrap()];
        new.sections.remove("vcpu");
        texts.push(old.difference(&new, channel).unwrap());
        (new.state_version, new.newest_state_version) = (98, Some(99));
        texts.push(old.difference(&new, channel).unwrap());
        new.cpr_version += 1;
        texts.push(old.difference(&new, channel).unwrap());
        insta::assert_debug_snapshot!(texts);
    }
}

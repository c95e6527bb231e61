//! Two builds of one VMM: one starts the VM, and updates go to the other.

use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use guest_images::GuestImage;

use crate::backend::control::Control;
use crate::backend::{Backend, Channels, Dialect, Feature, Image, Launch};
use crate::observe::files::Files;
use crate::scenario::{CommandKind, Inject};

/// Which build each update of a VM goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Course {
    /// Always to the other build.
    #[default]
    There,
    /// To the other build and back, alternately.
    ThereAndBack,
}

/// A backend that consists of two builds.
pub struct CrossVersion {
    from: Arc<dyn Backend>,
    to: Arc<dyn Backend>,
    course: Course,
}

/// An error for two VMMs that cannot be updated to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{from} cannot be updated to {to}: the two must be builds of one VMM")]
pub struct SkewError {
    from: &'static str,
    to: &'static str,
}

impl CrossVersion {
    /// A backend whose VMs are started by `from`.
    pub fn new(
        from: Arc<dyn Backend>,
        to: Arc<dyn Backend>,
        course: Course,
    ) -> Result<Self, SkewError> {
        match from.name() == to.name() {
            true => Ok(Self { from, to, course }),
            false => Err(SkewError { from: from.name(), to: to.name() }),
        }
    }
}

impl Backend for CrossVersion {
    fn name(&self) -> &'static str {
        self.from.name()
    }

    fn version(&self) -> Option<&str> {
        self.from.version()
    }

    fn revision(&self) -> Option<&str> {
        self.from.revision()
    }

    fn binary(&self) -> &Path {
        self.from.binary()
    }

    fn executable(&self) -> &Path {
        self.from.executable()
    }

    fn wrapper(&self) -> &[String] {
        self.from.wrapper()
    }

    fn next(&self, done: u32) -> Option<&dyn Backend> {
        let back = self.course == Course::ThereAndBack && done % 2 == 1;
        Some(if back { &*self.from } else { &*self.to })
    }

    fn image<'a>(&self, guest: &'a GuestImage) -> Image<'a> {
        self.from.image(guest)
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        self.from.arguments(launch)
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        self.to.update_arguments(launch, state)
    }

    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String> {
        self.to.transfer_arguments(launch, channels)
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        self.to.change_arguments(kind, arguments);
    }

    fn channels(&self, channels: Channels) -> Channels {
        self.to.channels(channels)
    }

    fn control(
        &self,
        launch: Launch<'_>,
        incoming: Option<&Channels>,
    ) -> io::Result<Option<Arc<dyn Control>>> {
        self.from.control(launch, incoming)
    }

    fn control_socket(&self, files: &Files) -> Option<String> {
        self.from.control_socket(files)
    }

    fn second_qmp(&self, files: &Files) -> String {
        self.from.second_qmp(files)
    }

    fn dialect(&self) -> Dialect {
        self.from.dialect()
    }

    /// Checks both builds, because a case may need the feature before and after an update.
    fn lacks(&self, feature: Feature) -> Option<String> {
        self.from.lacks(feature).or_else(|| self.to.lacks(feature))
    }

    fn unsupported_fault(&self, fault: &Inject) -> Option<String> {
        self.from.unsupported_fault(fault).or_else(|| self.to.unsupported_fault(fault))
    }

    fn uses_kvm(&self) -> bool {
        self.from.uses_kvm() || self.to.uses_kvm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpr_vmm::CprVmm;
    use crate::backend::mock::Mock;

    fn mock(path: &str) -> Arc<dyn Backend> {
        Arc::new(Mock::at(Path::new(path), None).unwrap())
    }

    #[test]
    fn updates_go_there_or_there_and_back() {
        let binaries = |course| {
            let skew = CrossVersion::new(mock("/bin/true"), mock("/bin/false"), course).unwrap();
            let name = |done| skew.next(done)?.binary().file_name()?.to_str().map(str::to_owned);
            [0, 1, 2].map(|done| name(done).unwrap()).join(" ")
        };
        assert!(binaries(Course::There).ends_with("false false false"));
        assert!(binaries(Course::ThereAndBack).ends_with("false true false"));
    }

    #[test]
    fn rejects_different_vmms() {
        let own = Arc::new(CprVmm::carried().unwrap());
        let error =
            CrossVersion::new(own, mock("/bin/true"), Course::There).err().unwrap().to_string();
        let why = "cpr-vmm cannot be updated to mock: the two must be builds of one VMM";
        assert_eq!(error, why);
    }
}

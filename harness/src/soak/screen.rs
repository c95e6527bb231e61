//! A soak on a terminal: a line for each VM, and one for all, until it is over.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Soaking, lines};

/// What is shown.
pub struct Screen {
    // It draws for as long as it is there.
    _all: MultiProgress,
    head: ProgressBar,
    vms: Vec<ProgressBar>,
}

impl Screen {
    /// With a line for each of so many VMs.
    pub fn new(vms: usize) -> Self {
        let all = MultiProgress::new();
        let line = || {
            let style = ProgressStyle::with_template("{wide_msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0).with_style(style))
        };
        let head = line();
        let vms = (0..vms).map(|_| line()).collect();
        Self { _all: all, head, vms }
    }

    /// Shows how it goes.
    pub fn show(&self, soaking: &Soaking) {
        self.head.set_message(lines::interval(soaking));
        for (index, (bar, lane)) in self.vms.iter().zip(soaking.board().lanes()).enumerate() {
            bar.set_message(lines::of_vm(index, &lane));
        }
    }

    /// Leaves nothing behind.
    pub fn clear(&self) {
        self.head.finish_and_clear();
        self.vms.iter().for_each(ProgressBar::finish_and_clear);
    }
}

//! A guest that is offered to another process, and how the offer ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::keeper::commit::{Claim, CommitPage};

/// A guest that is offered to another process. Dropping it takes the guest back; if the other
/// process has claimed it by then, this process ends instead, because it must not resume it.
#[derive(Debug)]
pub struct Offered {
    page: Arc<CommitPage>,
    state_sent: bool,
    decided: bool,
}

impl Offered {
    /// Offers the guest through `page`.
    pub fn new(page: Arc<CommitPage>) -> Self {
        Self { page, state_sent: false, decided: false }
    }

    /// Records that the other process gets the state: from now on it can run the guest.
    pub fn state_is_sent(&mut self) {
        self.state_sent = true;
    }

    /// Takes the guest back in one atomic step, and returns whether this process has it. The other
    /// process may have claimed it before.
    pub fn take_back(mut self) -> bool {
        self.decided = true;
        self.page.take_back_or_end()
    }
}

impl AsFd for Offered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.page.as_fd()
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        match (self.decided, self.state_sent) {
            (true, _) => {}
            (false, true) => self.page.claim_or_end(Claim::Released),
            // Without the state, nothing but this process and its keeper can run the guest.
            (false, false) => self.page.dismiss_or_end(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::commit::claim;

    #[test]
    fn dropped_offer_cannot_be_claimed() {
        let page = Arc::new(CommitPage::create().unwrap());
        let mut offered = Offered::new(page.clone());
        offered.state_is_sent();
        drop(offered);
        assert!(!claim(page.word(), Claim::Successor));
    }

    #[test]
    fn claimed_guest_is_not_taken_back() {
        let page = Arc::new(CommitPage::create().unwrap());
        let mut offered = Offered::new(page.clone());
        offered.state_is_sent();
        assert!(claim(page.word(), Claim::Successor));
        assert!(!offered.take_back());
    }

    #[test]
    fn early_claim_does_not_take_the_guest_away() {
        let page = Arc::new(CommitPage::create().unwrap());
        assert!(claim(page.word(), Claim::Successor));
        // It does not end this process.
        drop(Offered::new(page));
    }
}

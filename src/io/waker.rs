//! Where a task of a shard leaves its waker, for others on the same thread to wake it. Nothing here fails.

use std::cell::RefCell;
use std::task::{Context, Waker};

/// A place for the waker of one task.
#[derive(Default)]
pub(crate) struct WakerCell(RefCell<Option<Waker>>);

impl WakerCell {
    pub(crate) fn keep(&self, context: &Context<'_>) {
        let mut waker = self.0.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.0.borrow() {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn forget(&self) {
        self.0.borrow_mut().take();
    }
}

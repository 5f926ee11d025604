//! Who may use the processor next: the most urgent of those that wait.
//!
//! Segments that are fetched at once arrive at once; without this they would also all be ready at once, the one that
//! replay waits for no sooner than the one it needs last.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A number of turns to be had at a time.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    arrivals: u64,
    /// By rank, then by arrival.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<Turn>>,
}

/// A turn; dropping it passes it on.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
}

impl Turns {
    /// Lets `count` have their turn at a time.
    pub fn new(count: NonZeroUsize) -> Arc<Self> {
        let state = State { free: count.get(), arrivals: 0, waiting: BTreeMap::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for a turn. The lowest rank goes first, and among equals who came first.
    pub async fn turn(self: &Arc<Self>, rank: u64) -> Turn {
        let next = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn { turns: Arc::clone(self) };
            }
            let (give, next) = oneshot::channel();
            state.arrivals += 1;
            let arrival = state.arrivals;
            state.waiting.insert((rank, arrival), give);
            next
        };
        next.await.expect("whoever waits is given a turn before its place is dropped")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.turns.lock();
            let next = state.waiting.pop_first();
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        // one that no longer waits drops its turn in turn, and so passes it on
        if let Some((_, waiting)) = next {
            drop(waiting.send(Self { turns: Arc::clone(&self.turns) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_lowest_rank_goes_first_and_then_the_first_that_came() {
        let turns = Turns::new(NonZeroUsize::MIN);
        let held = turns.turn(9).now_or_never().unwrap();
        let mut waiting = [7, 3, 7, 1].map(|rank| Box::pin(turns.turn(rank)));
        for next in &mut waiting {
            assert!(next.now_or_never().is_none());
        }
        drop(held);
        for first in [3, 1, 0, 2] {
            let turn = (&mut waiting[first]).now_or_never().unwrap();
            drop(turn);
        }
        assert!(turns.turn(0).now_or_never().is_some());
    }

    #[test]
    fn one_that_gave_up_waiting_holds_up_nobody() {
        let turns = Turns::new(NonZeroUsize::MIN);
        let held = turns.turn(0).now_or_never().unwrap();
        let mut given_up = [1, 2, 3].map(|rank| Box::pin(turns.turn(rank)));
        for next in &mut given_up {
            assert!(next.now_or_never().is_none());
        }
        let mut last = Box::pin(turns.turn(4));
        assert!((&mut last).now_or_never().is_none());
        drop(given_up);
        drop(held);
        assert!(last.now_or_never().is_some());
        assert_eq!(turns.lock().free, 1);
    }
}

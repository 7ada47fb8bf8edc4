//! Buffers that are used again, because faulting in fresh memory costs more than what is read into it.

use std::sync::{Arc, Mutex, PoisonError};

/// A pool of buffers, shared by its clones. Holds at most as many as it was made for; the rest is freed.
#[derive(Debug, Clone)]
pub struct BufferPool {
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
    kept_max: usize,
}

impl BufferPool {
    /// A pool that keeps up to `kept_max` idle buffers: as many as can be on their way at once.
    pub fn new(kept_max: usize) -> Self {
        BufferPool { kept: Arc::default(), kept_max }
    }

    /// A buffer of exactly `length` bytes. Its content is arbitrary: zeros, or what an earlier user left.
    pub fn take(&self, length: usize) -> Vec<u8> {
        let Some(mut buffer) = self.take_fitting(length) else { return vec![0; length] };
        buffer.resize(length, 0);
        buffer
    }

    /// Gives a buffer back, of whatever origin. Keep its length: growing it again costs a fill with zeros.
    pub fn put(&self, buffer: Vec<u8>) {
        if buffer.capacity() == 0 {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push(buffer);
        } else if let Some(smallest) = kept.iter_mut().min_by_key(|b| b.capacity())
            && smallest.capacity() < buffer.capacity()
        {
            *smallest = buffer;
        }
    }

    /// The smallest kept buffer that holds `length` bytes; among equals the one used last, whose pages are warm.
    fn take_fitting(&self, length: usize) -> Option<Vec<u8>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, _) = kept.iter().enumerate().rev().filter(|(_, b)| b.capacity() >= length).min_by_key(|(_, b)| b.capacity())?;
        Some(kept.remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_are_exact_and_reuse() {
        let pool = BufferPool::new(2);
        let buffer = pool.take(1000);
        let place = buffer.as_ptr();
        pool.put(buffer);
        let again = pool.take(10);
        assert_eq!((again.len(), again.as_ptr()), (10, place));
        pool.put(again);
        let third = pool.clone().take(1000);
        assert_eq!((third.len(), third.as_ptr()), (1000, place));
    }

    #[test]
    fn the_best_fit_is_taken_and_large_ones_displace_small_ones() {
        let pool = BufferPool::new(2);
        pool.put(Vec::with_capacity(10));
        pool.put(Vec::with_capacity(1000));
        pool.put(Vec::with_capacity(100));
        assert_eq!(pool.take(50).capacity(), 100);
        assert_eq!(pool.take(50).capacity(), 1000);
        assert_eq!(pool.take(5).capacity(), 5);
    }

    #[test]
    fn keeps_no_more_than_it_may() {
        let pool = BufferPool::new(1);
        (0..5).for_each(|_| pool.put(vec![0; 64]));
        assert_eq!(pool.kept.lock().expect("lock").len(), 1);
    }
}

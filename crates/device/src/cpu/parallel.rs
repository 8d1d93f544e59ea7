//! Work dealt to a pool's threads item by item, where items may own what they write.

use std::sync::{Mutex, PoisonError};

use super::pool::Pool;
use super::views::RowsMut;

/// Elements below which an operation is done before another thread has woken.
const WORTH_SHARING: usize = 16 * 1024;

/// Runs `work(part, item)` once for each item, taken in order by whichever thread is free.
///
/// `part` is below the pool's number of threads and never used by two calls at the same time: the name of a scratch
/// space. The iterator hands out what is exclusive, under a lock: items should be worth some microseconds.
pub(crate) fn each<I>(pool: &Pool, items: I, work: impl Fn(usize, I::Item) + Sync)
where
    I: Iterator + Send,
{
    let items = Mutex::new(items);
    pool.run(pool.threads(), &|part| {
        loop {
            let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            match item {
                Some(item) => work(part, item),
                None => return,
            }
        }
    });
}

/// Whether an operation that touches so many elements gains from a second thread.
pub(crate) fn worth_sharing(pool: &Pool, elements: usize) -> bool {
    1 < pool.threads() && WORTH_SHARING <= elements
}

/// Rows of a band when `rows` are shared: a few bands a thread, to even out what else the machine does.
pub(crate) fn band(pool: &Pool, rows: usize) -> usize {
    rows.div_ceil(pool.threads() * 4).max(1)
}

/// Runs `work` on bands of `out`'s rows, told the first row of each; `cost` is how many elements a row touches.
pub(crate) fn bands<T: Send + Sync>(
    pool: &Pool,
    out: RowsMut<'_, T>,
    cost: usize,
    work: impl Fn(usize, RowsMut<'_, T>) + Sync,
) {
    if !worth_sharing(pool, out.rows() * cost) {
        return work(0, out);
    }
    let count = band(pool, out.rows());
    each(pool, out.bands(count).enumerate(), |_, (band, out)| work(band * count, out));
}

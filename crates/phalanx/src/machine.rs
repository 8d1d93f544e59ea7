//! What this machine has: cores and free memory.

use std::thread::available_parallelism;

/// Threads worth having.
pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory this process may still take: what the system can free, within the container's limit.
pub(crate) fn available_memory() -> usize {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let system = available_in_meminfo(&read("/proc/meminfo")).unwrap_or(4 << 30);
    let number = |path: &str| read(path).trim().parse::<usize>().ok();
    let limit = number("/sys/fs/cgroup/memory.max");
    let cached = file_pages(&read("/sys/fs/cgroup/memory.stat"));
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0).saturating_sub(cached);
    limit.map_or(system, |limit| system.min(limit.saturating_sub(used)))
}

/// Bytes of a container that hold copies of files: the system takes them back when memory is wanted.
fn file_pages(stat: &str) -> usize {
    let value = |line: &str, key: &str| line.strip_prefix(key)?.trim().parse::<usize>().ok();
    let keys = ["inactive_file ", "active_file "];
    stat.lines().filter_map(|line| keys.iter().find_map(|key| value(line, key))).sum()
}

fn available_in_meminfo(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(super::file_pages("anon 5\ninactive_file 30\nactive_file 12\n"), 42);
        let text = "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(super::available_in_meminfo(text), Some(20_480_000_000));
        assert_eq!(super::available_in_meminfo("nothing"), None);
    }
}

//! The name of this machine, as markers and workers carry it.

/// Longest name, in characters.
const NAME_MAX: usize = 64;

/// What the kernel says, else `$HOSTNAME`; visible ASCII only, and `unknown` where neither says anything.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name: String = name.unwrap_or_default().trim().chars().filter(char::is_ascii_graphic).take(NAME_MAX).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

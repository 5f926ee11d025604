//! Bucket names, as far as addressing depends on them (`spec/wal-e-format.md §8.4`).

/// Whether a bucket's name can be part of a host name: what WAL-E calls subdomain compatible. Others, of the early days of
/// S3, can only be part of the path.
pub fn is_compatible(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name == name.to_lowercase()
        && !name.contains(['_', '/', ':'])
        && !["..", "-.", ".-"].iter().any(|pair| name.contains(pair))
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !looks_like_ipv4(name)
}

/// Whether the bucket has to be part of the path: with a dot in its name, AWS's certificate does not cover
/// `<bucket>.s3.amazonaws.com`.
pub(super) fn needs_path_style(name: &str) -> bool {
    !is_compatible(name) || name.contains('.')
}

/// Four integers between dots, whatever their sign and size.
fn looks_like_ipv4(name: &str) -> bool {
    let integer = |part: &str| {
        let digits = part.strip_prefix(['-', '+']).unwrap_or(part);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    name.split('.').count() == 4 && name.split('.').all(integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    // spec/wal-e-format.md §12, vector 35.
    #[test]
    fn names_that_fit_a_host_name_are_compatible() {
        for name in ["myawsbucket", "my-aws-bucket", "my.aws.bucket", "myawsbucket.1"] {
            assert!(is_compatible(name), "{name}");
        }
        let long = "x".repeat(120);
        for name in [
            "1.2.3.4",
            "-1.1.1.1",
            "1.1.1.256",
            "myawsbucket.",
            ".myawsbucket",
            "-myawsbucket",
            "myawsbucket-",
            "my_awsbucket",
            "my..examplebucket",
            "my.-awsbucket",
            "my-.awsbucket",
            "MyAwsBucket",
            "sh",
            &long,
        ] {
            assert!(!is_compatible(name), "{name}");
        }
    }

    #[test]
    fn dotted_and_incompatible_names_go_into_the_path() {
        for (name, path) in [("my-bucket", false), ("my.bucket", true), ("My_Bucket", true)] {
            assert_eq!(needs_path_style(name), path, "{name}");
        }
    }
}

//! The hosts of applications.
use std::sync::Arc;

use crate::config::{Scheme, Site, SitePattern};

/// `PROTECTED_HOSTS`, read under the scheme of `PUBLIC_URL`. Targets and access rules share one list, so they can't
/// disagree about what is protected.
#[derive(Clone, Debug)]
pub(crate) struct ProtectedHosts {
    patterns: Arc<[SitePattern]>,
    scheme: Scheme,
}

impl ProtectedHosts {
    pub(crate) fn new(patterns: &[SitePattern], scheme: Scheme) -> Self {
        Self { patterns: patterns.iter().map(|host| host.clone().under(scheme)).collect(), scheme }
    }

    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whether this host is one of them.
    pub(crate) fn include(&self, site: &Site) -> bool {
        self.patterns.iter().any(|known| known.matches(site))
    }

    /// Whether every host that the pattern matches is one of them.
    pub(crate) fn cover(&self, pattern: &SitePattern) -> bool {
        self.patterns.iter().any(|known| known.covers(pattern))
    }
}

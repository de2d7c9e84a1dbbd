"""One JSON schema for the reports of all verbs: pydantic models with a ``schema_version``, and nothing that prints."""

from msconv_deploy.reporting.doctor import DoctorReport, Finding
from msconv_deploy.reporting.optimize import InspectReport, OptimizeReport, Verification
from msconv_deploy.reporting.report import SCHEMA_VERSION, Report, Verdict
from msconv_deploy.reporting.validation import (
    BuildCheck,
    Case,
    Comparison,
    Divergence,
    RefusedCase,
    ValidationReport,
)
from msconv_deploy.reporting.versions import installed_versions

__all__ = [
    "SCHEMA_VERSION",
    "BuildCheck",
    "Case",
    "Comparison",
    "Divergence",
    "DoctorReport",
    "Finding",
    "InspectReport",
    "OptimizeReport",
    "RefusedCase",
    "Report",
    "ValidationReport",
    "Verdict",
    "Verification",
    "installed_versions",
]

"""Which section of a report is evidence for which clause that its readers are asked about, and what it does not show.

Data only. Evidence for a clause is never compliance with it: every clause asks for more than a measurement. What a
clause asks is put in plain words here; the text in force decides.
"""

from __future__ import annotations

from dataclasses import dataclass

CAUTION = (
    "This table names the parts of this report that can serve as evidence where these texts are asked about. It is no "
    "certification, no legal opinion and no statement that any of them is met: each asks for more than a measurement, "
    "and whether it applies at all is for the reader to settle."
)
MEMBERSHIP = (
    "Membership: no membership inference is run. Linkage, which is, assumes that one of its candidates is the true "
    "record and tells which; it does not tell whether any of them was trained on."
)
SECTIONS = {  # anchor in the report: how a link to it reads
    "verdict": "Verdict",
    "scope": "Scope and threat model",
    "findings": "Findings",
    "frontier": "Privacy against accuracy",
    "guarantees": "What is proven",
    "attacks": "Every attack",
    "pictures": "Pictures",
    "controls": "Controls and baselines",
    "not-tested": "What was not tested",
    "waivers": "Waivers",
    "reproduce": "Reproducing",
    "sign-off": "Sign-off",
}


CONTENTS = (  # sections in their order: anchor, how the link at the head reads
    ("captured", "What was captured"),
    ("findings", "Findings"),
    ("pictures", "Pictures"),
    ("attacks", "Every attack"),
    ("guarantees", "What is proven"),
    ("controls", "Controls"),
    ("not-tested", "What was not tested"),
    ("costs", "Costs"),
    ("gate", "Gate"),
    ("waivers", "Waivers"),
    ("scope", "Assumptions"),
    ("mapping", "Clauses"),
    ("glossary", "Glossary"),
    ("reproduce", "Reproducing"),
    ("sign-off", "Sign-off"),
)


@dataclass(frozen=True)
class Clause:
    """One clause, what it asks in plain words, the sections that are evidence for it, and what they leave open."""

    id: str
    asks: str
    evidence: tuple[str, ...]  # anchors, keys of SECTIONS
    open: str  # what the evidence does not show


@dataclass(frozen=True)
class Framework:
    """A law, standard or catalogue with its clauses."""

    name: str
    note: str  # edition, and where it applies
    clauses: tuple[Clause, ...]


FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "GDPR",
        "Regulation (EU) 2016/679. Where what clients train on is personal data.",
        (
            Clause(
                "Art. 25(1)",
                "Build protection into the processing by design, with regard to the state of the art.",
                ("frontier", "guarantees"),
                "Whether the data were needed at all, and every measure outside the shared update.",
            ),
            Clause(
                "Art. 32(1)(d)",
                "Test, assess and evaluate regularly how effective the security measures are.",
                ("attacks", "findings", "reproduce"),
                "Regularity: one report is one test. Other measures, such as access and transport, are not tested.",
            ),
            Clause(
                "Art. 32(2)",
                "Weigh the risk that data are disclosed to, or accessed by, somebody without authority.",
                ("attacks", "pictures"),
                "How likely it is that somebody gets to see an update, and how grave that would be for a person.",
            ),
            Clause(
                "Art. 35(7)",
                "Where an impact assessment is due: assess the risks to people and the measures against them.",
                ("scope", "findings", "not-tested"),
                "Necessity and proportionality, the views of those concerned, and risks other than reconstruction.",
            ),
        ),
    ),
    Framework(
        "EU AI Act",
        "Regulation (EU) 2024/1689. Of high-risk systems only.",
        (
            Clause(
                "Art. 15(3)",
                "Declare the levels of accuracy and the metrics behind them in the instructions for use.",
                ("frontier",),
                "The accuracy of the deployed model: here short training runs are compared with each other.",
            ),
            Clause(
                "Art. 15(5)",
                "Prevent, detect and resolve attacks on weaknesses of AI, confidentiality attacks among them.",
                ("attacks", "controls", "not-tested"),
                "Poisoning, evasion, model flaws, detection and response.",
            ),
        ),
    ),
    Framework(
        "NIST AI 100-2 E2025",
        "Adversarial machine learning: taxonomy and terminology.",
        (
            Clause(
                "NISTAML.032",
                "Data reconstruction: rebuild training records from what a system reveals.",
                ("attacks", "pictures"),
                "Reconstruction from a finished model or its answers: here from shared updates only.",
            ),
            Clause(
                "NISTAML.033",
                "Membership inference: tell whether a record was trained on.",
                ("not-tested", "attacks"),
                MEMBERSHIP,
            ),
        ),
    ),
    Framework(
        "NIST AI RMF 1.0",
        "NIST AI 100-1, a voluntary framework.",
        (
            Clause(
                "MAP 5.1",
                "Identify how likely and how large the impacts are that were found.",
                ("verdict", "frontier"),
                "Impacts on people: a rate of identification is not a harm.",
            ),
            Clause(
                "MEASURE 2.1",
                "Document the test sets, the metrics and the tools of the evaluation.",
                ("scope", "reproduce"),
                "Evaluations other than this one.",
            ),
            Clause(
                "MEASURE 2.7",
                "Evaluate and document security and resilience.",
                ("attacks", "controls"),
                "Integrity and availability, and attacks that were not run.",
            ),
            Clause(
                "MEASURE 2.10",
                "Examine and document the privacy risk.",
                ("findings", "attacks", "guarantees"),
                "Privacy risks other than what a shared update tells.",
            ),
            Clause(
                "MANAGE 1.4",
                "Document the risks that remain.",
                ("guarantees", "not-tested", "waivers"),
                "Whether they are acceptable: that is signed for, not measured.",
            ),
        ),
    ),
    Framework(
        "ISO/IEC 42001:2023",
        "AI management system, Annex A.",
        (
            Clause(
                "A.5.4",
                "Assess the impact of the AI system on individuals or groups.",
                ("verdict", "attacks"),
                "Any impact but the exposure of training records.",
            ),
            Clause(
                "A.6.2.4",
                "Define and document verification and validation, with criteria for their use.",
                ("frontier", "findings", "reproduce"),
                "Whether the model is fit for its purpose.",
            ),
            Clause(
                "A.6.2.7",
                "Keep technical documentation for those who need it.",
                ("scope", "reproduce"),
                "Documentation of the system beyond this audit.",
            ),
        ),
    ),
    Framework(
        "ISO/IEC 27001:2022",
        "Information security management, Annex A.",
        (
            Clause(
                "A.5.34",
                "Protect privacy and personal data as laws and contracts ask.",
                ("findings", "guarantees"),
                "Which laws and contracts apply.",
            ),
            Clause(
                "A.8.11",
                "Mask data where policy and law ask for it.",
                ("attacks", "pictures"),
                "Masking anywhere but in the shared update.",
            ),
            Clause(
                "A.8.12",
                "Prevent leakage from systems that process sensitive information.",
                ("attacks", "findings"),
                "Other ways out: files, logs, networks, people.",
            ),
            Clause(
                "A.8.29",
                "Test security during development and before acceptance.",
                ("findings", "reproduce"),
                "That it is done for every release: one report is one test, whether or not a gate runs in the build.",
            ),
        ),
    ),
    Framework(
        "MITRE ATLAS",
        "Techniques by number. ATLAS describes them for an inference API: a shared update tells more than an API does.",
        (
            Clause(
                "AML.T0024",
                "Exfiltration via an AI inference API.",
                ("attacks",),
                "The API of a deployed model.",
            ),
            Clause(
                "AML.T0024.000",
                "Infer training data membership.",
                ("not-tested", "attacks"),
                MEMBERSHIP,
            ),
            Clause(
                "AML.T0024.001",
                "Invert an AI model: rebuild what it was trained on.",
                ("attacks", "pictures"),
                "Inversion by queries.",
            ),
        ),
    ),
    Framework(
        "OWASP Machine Learning Security Top 10",
        "2023, a draft. Its list for language models does not fit: no text model is audited here.",
        (
            Clause(
                "ML03:2023",
                "Model inversion attack.",
                ("attacks", "pictures"),
                "Inversion of a deployed model.",
            ),
            Clause(
                "ML04:2023",
                "Membership inference attack.",
                ("not-tested", "attacks"),
                MEMBERSHIP,
            ),
        ),
    ),
)

"""The clinical circumstances that point to each cause, in the words of a referring doctor.

``CONTEXTS[p][c]`` are paraphrases for cause ``c`` of pattern ``p``. Each is a noun phrase of four to
seven words without a comma, names no diagnosis of the table and tells nothing that the image
shows. ``{n}`` is replaced by a number from 2 to 9.
"""

CONTEXTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "fever and productive cough for {n} days",
            "raised white count with purulent sputum",
            "chills and yellow sputum this week",
            "high temperature after a recent cold",
            "rust coloured sputum and shaking chills",
            "cough with fever despite oral amoxicillin",
        ),
        (
            "coughing up blood for {n} days",
            "anticoagulated with warfarin and INR above six",
            "falling hemoglobin and blood streaked sputum",
            "positive ANCA with hematuria and anemia",
            "hemoptysis after starting a blood thinner",
            "low platelets and frank hemoptysis overnight",
        ),
    ),
    (
        (
            "childhood contact with a tuberculosis case",
            "positive interferon gamma release assay",
            "long residence in the Ohio river valley",
            "years of keeping pigeons and exploring caves",
            "healed tuberculosis {n} decades ago",
            "positive tuberculin skin test on screening",
        ),
        (
            "colon cancer resected {n} years ago",
            "staging of a newly found melanoma",
            "known renal cell carcinoma under follow up",
            "weight loss and a breast tumour",
            "osteosarcoma of the leg on chemotherapy",
            "rising tumour markers after thyroid cancer",
        ),
    ),
    (
        (
            "slowly worsening breathlessness over {n} years",
            "finger clubbing with dry velcro crackles",
            "decades of asbestos work in shipyards",
            "long term amiodarone for heart rhythm",
            "rheumatoid arthritis treated with methotrexate",
            "restrictive spirometry with low diffusing capacity",
        ),
        (
            "missed dialysis sessions for {n} days",
            "sudden overnight breathlessness with gallop rhythm",
            "several litres of intravenous saline given",
            "blood pressure of 230 on arrival",
            "raised BNP and acute mitral regurgitation",
            "oliguria and positive balance of {n} litres",
        ),
    ),
    (
        (
            "liver cirrhosis with tense ascites",
            "serum albumin very low with proteinuria",
            "nephrotic syndrome with swollen ankles",
            "ankle swelling and reduced ejection fraction",
            "gained {n} kilograms since stopping diuretics",
            "dilated cardiomyopathy with raised neck veins",
        ),
        (
            "rigors and positive blood cultures",
            "poor dentition with foul smelling breath",
            "injects drugs and has swinging temperatures",
            "septic for {n} days with high CRP",
            "drained liver abscess with persistent rigors",
            "aspiration while intoxicated {n} weeks ago",
        ),
    ),
    (
        (
            "tall thin young adult who smokes",
            "sharp chest pain while at rest",
            "Marfan habitus with abrupt chest pain",
            "heavy cannabis smoker with sudden pain",
            "same event {n} years ago without injury",
            "abrupt pain while reading in bed",
        ),
        (
            "fell {n} metres from a ladder",
            "driver in a high speed collision",
            "stab wound to the chest wall",
            "subclavian catheter attempted {n} hours ago",
            "kicked in the chest by a horse",
            "transbronchial biopsy performed this morning",
        ),
    ),
)
"""Paraphrases by pattern (in the order of `findings.PATTERNS`) and cause."""

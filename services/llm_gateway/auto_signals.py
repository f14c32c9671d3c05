"""Words by which a request shows how much thought it asks for, in the languages that callers write most.

`*_STEMS` are beginnings of words in lower case, for languages that bend them; `*_SIGNS` are found anywhere in the text: phrases, and
scripts that do not part their words.
"""

# Proofs, derivations, designs, comparisons, judgements.
DEEP_STEMS = (
    # English
    "prove", "proof", "proving", "deriv", "analy", "evaluat", "critical", "optimi", "architect", "design", "trade-off", "tradeoff",
    "justif", "compar", "debug", "refactor", "hypothes", "investigat", "generaliz", "generalis", "strateg", "argue", "argument",
    "recommend", "assumption", "implement", "solve", "diagnos", "formaliz", "reconcil", "mechanism", "limitation", "rollout", "forecast",
    "counterexample", "assess",
    "discuss", "critique", "reason", "estimate", "simulat", "verify", "sufficient", "prioriti", "root-cause",
    # German
    "beweis", "leite", "herleit", "analysier", "vergleich", "bewert", "entwirf", "entwerf", "entwick", "begründ", "optimier",
    "architektur", "strategie", "untersuch", "gegenbeispiel", "diskutier", "erörter", "berücksichtig", "abwäg", "beurteil", "rechne",
    "erläuter", "löse", "modellier",
    # French
    "démontr", "prouv", "conçoi", "concev", "justifi", "évalu", "compare", "stratég", "hypothès", "déduis", "discut", "argument",
    "critiqu", "analys", "étudi",
    # Spanish, Portuguese, Italian
    "demuestr", "demostr", "diseñ", "analiz", "analis", "compar", "desarroll", "estrateg", "evalú", "projet", "arquitet", "arquitec",
    "demonstr", "dimostr", "confront", "progett", "architett", "giustific", "valuta", "justifiq", "razon", "avali", "discuti",
    "planific", "planej", "pianific",
    # Dutch, Polish, Ukrainian, Turkish
    "ontwerp", "vergelijk", "onderbouw", "bewijs", "beargumenteer", "udowodn", "dowód", "przeanaliz", "porówn", "zaprojekt", "uzasadn",
    "доведи", "доведіть", "проаналіз", "порівн", "tasarla", "karşılaştır", "gerekçe", "mimari", "kanıtla", "analiz", "ispatla",
    # Russian
    "докаж", "доказ", "проанализ", "анализ", "сравни", "спроектир", "обоснуй", "обоснов", "оптимизир", "выведи", "разбери", "оценк",
    "оцени", "рассужд",
    # Arabic
    "أثبت", "حلل", "قارن", "صمم", "برهان", "البرهان", "ناقش", "برهن",
)  # fmt: skip
DEEP_SIGNS = (
    "step by step", "step-by-step", "show that", "work out", "figure out", "reason about", "how would you", "walk me through",
    "think through", "find the bug", "what could go wrong",
    "schritt für schritt", "zeige, dass", "zeigen sie, dass", "étape par étape", "montre que", "montrez que", "paso a paso",
    "muestra que", "passo a passo", "passo dopo passo", "mostra che", "stap voor stap", "toon aan", "krok po kroku", "wykaż, że",
    "adım adım", "по шагам", "покажи, что", "خطوة بخطوة",
    "证明", "證明", "推导", "推導", "分析", "比较", "比較", "设计", "設計", "优化", "優化", "评估", "評估", "权衡", "權衡", "架构",
    "架構",
    "逐步", "论述", "論述", "论证", "論證", "推广到", "评价", "求解", "讨论", "討論", "如何保证", "保证", "论证",
    "最適化", "検討", "考察", "評価", "アーキテクチャ", "段階的", "根拠", "議論", "導出", "解き", "論じ", "示して", "限界", "手法",
    "比べ",
    "증명", "비교", "설계", "최적화", "아키텍처", "단계별", "평가", "논하", "유도", "검토",
    "विश्लेषण", "सिद्ध", "तुलना", "डिज़ाइन",
)  # fmt: skip

# The matter itself is difficult.
TECHNICAL_STEMS = (
    "algorit", "algorithm", "complexit", "concurren", "deadlock", "consisten", "distribut", "migrat", "theorem", "induction",
    "differential", "confound", "constraint", "latency", "throughput", "regression", "variance", "matrix", "matri", "eigen", "converg",
    "diverg", "abelian", "topolog", "gradient", "probabilit", "bayes", "elasticit", "equilibri", "microservice", "replicat", "lock-free",
    "mutex", "thread", "kernel", "compiler", "parser", "grammar", "transaction", "encrypt", "scenario", "finite", "integer", "polynom",
    "integral", "prime", "irrational", "memory", "fuzz", "bias", "p-value", "significan", "causal", "cohort", "schema", "scheduler",
    "kafka", "postgres", "kubernetes", "backup", "stack", "queue", "cache", "shard", "gdpr", "dsgvo", "complian", "regulat", "nash",
    "cournot", "subgame", "monopol", "liquidit", "valuation", "derivativ", "statistic", "continuous", "recursi", "iterat", "overflow",
    "pointer", "async", "protocol", "tcp", "tls", "quantum", "thermodynam", "enzyme", "clinical", "protein", "liabilit", "jurisdict",
    "verteilt", "laufzeit", "konverg", "gleichung", "primzahl", "konsisten", "varianz", "zins", "opportunität", "ableitung", "reell",
    "équation", "suite", "série", "convers", "théor", "limite", "répliqu", "replica", "ecuación", "teorem", "primo", "concorr",
    "алгоритм", "теорем", "уравнен", "вероятн", "матриц", "сложност", "репликац", "отказоустойч", "множеств", "рёбр", "ребр",
    "algoritm", "dağıtık", "tutarlılık", "gedistribueerd", "consistentie", "pierwsz",
)  # fmt: skip
TECHNICAL_SIGNS = (
    "限流", "缓存", "消息队列", "数据库", "高并发", "统计", "统計", "統計", "算法", "复杂度", "一致性", "博弈", "方程", "定理", "矩阵",
    "概率", "素数", "微分", "积分", "分布式", "均衡",
    "收敛", "并发", "贝叶斯",
    "整合性", "複雑度", "収束", "境界条件", "安定性", "確率", "行列", "積分", "分散", "アルゴリズム",
    "알고리즘", "정리", "방정식", "확률", "행렬", "분산", "동시성", "대규모", "대용량",
)  # fmt: skip

# A text to write, to shorten or to explain: work, but of one piece. Such a request is no question of fact, however short it is.
WORK_STEMS = (
    "write", "draft", "rewrit", "summar", "explain", "describ", "suggest", "classif", "creat", "generat", "compos", "propos", "advis",
    "script", "function", "query", "essay", "brainstorm", "outlin", "paraphras", "proofread",
    "schreib", "erklär", "fasse", "formulier", "beschreib", "erstell", "verfass", "schlag",
    "écri", "expliqu", "résum", "rédig", "décri", "propose",
    "escrib", "explic", "resum", "redact", "escrev", "scriv", "spiega", "riassum", "descrev", "sugier", "propon",
    "schrijf", "napisz", "wyjaśn", "opisz", "streść", "yaz", "açıkla", "özetle", "напиши", "поясни",
    "объясн", "опиш", "переск", "придума", "посовет", "предлож",
    "اكتب", "اشرح", "لخص", "اقترح",
)  # fmt: skip
WORK_SIGNS = (
    "写一", "写封", "请写", "幫我", "帮我", "解释", "解釋", "总结", "總結", "函数", "描述", "说明", "建议", "推荐",
    "説明", "書いて", "要約", "作成", "提案", "教えてください", "作って", "작성", "설명", "요약", "추천", "써 줘", "써줘", "लिख", "समझा",
)  # fmt: skip

# Questions for advice or for a way of doing something: they end as questions of fact do, and are more.
ADVICE_WORDS = frozenset(
    (
        "should", "shall", "soll", "sollte", "sollten", "sollen", "dois", "devrais", "faut-il", "debo", "debería", "devo", "dovrei",
        "стоит", "следует", "why", "warum", "wieso", "pourquoi", "perché", "почему",
    )
)  # fmt: skip
ADVICE_STARTS = (
    "how do ", "how does ", "how can ", "how should ", "how would ", "how to ", "wie kann ", "wie funktioniert ", "wie bringe ",
    "wie mache ", "comment faire ", "comment puis", "comment fonctionne", "cómo puedo ", "¿cómo puedo ", "¿cómo funciona", "como posso ",
    "come posso ", "как мне ", "как работает ", "怎么样才能", "如何", "怎样", "どうすれば", "どうやって", "어떻게 하면",
)  # fmt: skip
# How one asks for a word in another language, which begins in the same way.
WORDING = (" say ", " spell ", " pronounce ", " sagt man ", " dit-on ", " se dice ", " si dice ", " se diz ")

# How questions of fact begin where their mark is left out, and commands that ask for no more than a fact.
ASKING_WORDS = frozenset(
    (
        "what", "whats", "what's", "who", "whose", "when", "where", "which", "is", "are", "was", "were", "does", "did", "how", "define",
        "name", "wer", "wann", "wo", "wie", "nenne", "qui", "combien", "qué", "quién", "cuándo", "dónde", "кто", "когда", "где",
    "сколько",
    )
)  # fmt: skip
ASKING_STEMS = (
    "translat", "convert", "spell", "extract", "übersetz", "tradui", "traduc", "traduz", "tradur", "vertaal", "przetłumacz", "перевед",
    "ترجم",
)  # fmt: skip

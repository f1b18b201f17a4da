"""The expression language of Corefiles (`view`, and `template`'s `var` and `expr`): compiled once, evaluated for each
query.

It is the language of expr-lang (https://expr-lang.org/docs/language-definition), which CoreDNS uses. What is wrong with
an expression is found when it is compiled as far as types are known then; the rest is an EvaluationError.
"""

from kdns.expression.compiler import RESERVED, Expression, compile_expression
from kdns.expression.values import BadExpression, EvaluationError, Function

__all__ = ["RESERVED", "BadExpression", "EvaluationError", "Expression", "Function", "compile_expression"]

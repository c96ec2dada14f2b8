"""How a policy is made, judged and scored. Never imports Spark."""

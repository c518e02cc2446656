# Does adjuvant treatment with levamisole and fluorouracil prolong the life of patients with stage B/C colon cancer?
#
# Kaplan-Meier curves by arm, a log-rank test, and a Cox model that adjusts for age, sex, positive lymph nodes, obstruction and how
# far the tumour has spread; whether its hazards are proportional is tested too (cox.zph), for if they are not, its numbers mislead.
#
# A plain script: it reads the parameters at $FORGE_PARAMS and writes to $FORGE_OUTPUTS and $FORGE_MESSAGES.
library(survival)

messages <- file(Sys.getenv("FORGE_MESSAGES"), "a", raw = TRUE)
say <- function(...) { cat(jsonlite::toJSON(list(...), auto_unbox = TRUE), "\n", sep = "", file = messages); flush(messages) }
output <- function(name) file.path(Sys.getenv("FORGE_OUTPUTS"), name)

params <- jsonlite::fromJSON(Sys.getenv("FORGE_PARAMS"))
patients <- subset(colon, etype == if (params$event == "death") 2 else 1)
patients <- transform(patients, arm = rx, sex = factor(sex, 0:1, c("female", "male")), years = time / 365.25)
say(type = "progress", fraction = 0.1, message = sprintf("%d patients, %d with the event", nrow(patients), sum(patients$status)))

outcome <- Surv(patients$years, patients$status)
curves <- survfit(outcome ~ arm, data = patients, conf.int = params$confidence)
logrank <- survdiff(outcome ~ arm, data = patients)
p_logrank <- pchisq(logrank$chisq, length(logrank$n) - 1, lower.tail = FALSE)
say(type = "progress", fraction = 0.4, message = "curves are estimated")

model <- coxph(outcome ~ arm + age + sex + nodes + obstruct + extent, data = patients)
proportional <- cox.zph(model)
intervals <- exp(confint(model, level = params$confidence))
hazards <- data.frame(
  term = names(coef(model)), hazard_ratio = exp(coef(model)), lower = intervals[, 1], upper = intervals[, 2],
  p = summary(model)$coefficients[, "Pr(>|z|)"]
)
say(type = "progress", fraction = 0.8, message = "the model is fitted")

table <- summary(curves)
rounded <- function(frame) { numbers <- sapply(frame, is.numeric); frame[numbers] <- lapply(frame[numbers], signif, 6); frame }
write.csv(
  rounded(data.frame(arm = sub("arm=", "", table$strata), years = table$time, at_risk = table$n.risk, survival = table$surv,
                     lower = table$lower, upper = table$upper)),
  output("curves.csv"), row.names = FALSE, quote = FALSE
)
write.csv(rounded(hazards), output("hazards.csv"), row.names = FALSE, quote = FALSE)

png(output("survival.png"), width = 800, height = 600, type = "cairo")
colours <- c("#4d4d4d", "#0072b2", "#d55e00")
plot(curves, col = colours, lwd = 2, xlab = "years", ylab = sprintf("without %s", params$event), ylim = c(0.3, 1))
legend("bottomleft", levels(patients$arm), col = colours, lwd = 2, bty = "n", title = sprintf("log-rank p = %.2g", p_logrank))
invisible(dev.off())

treated <- hazards["armLev+5FU", ]
summary <- list(
  patients = nrow(patients), events = sum(patients$status), used_in_model = model$n, logrank_p = signif(p_logrank, 6),
  hazard_ratio_treated = signif(treated$hazard_ratio, 6), proportional_hazards_p = signif(proportional$table["GLOBAL", "p"], 6)
)
write(jsonlite::toJSON(summary, auto_unbox = TRUE, pretty = TRUE, digits = 8), output("summary.json"))
say(type = "metadata", values = summary)
cat(sprintf("%s: hazard ratio of Lev+5FU %.2f (p = %.2g)\n", params$event, treated$hazard_ratio, treated$p))
close(messages)

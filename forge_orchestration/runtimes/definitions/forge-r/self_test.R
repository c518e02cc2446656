# Shows that this runtime works: its packages are loaded and used, on problems whose answers are known.
expect <- function(condition, otherwise) if (!isTRUE(condition)) stop(otherwise)

library(survival)
library(mgcv)

fit <- coxph(Surv(time, status) ~ age, data = lung)
expect(abs(coef(fit)[["age"]] - 0.0187) < 5e-4, "the hazard of age among lung cancer patients is not the published one")
x <- seq(0, 2 * pi, length.out = 200)
expect(summary(gam(sin(x) ~ s(x)))$r.sq > 0.999, "a smooth curve does not follow a sine")
expect(jsonlite::fromJSON('{"a": [1, 2]}')$a[[2]] == 2, "JSON is not read")
png(file.path(tempdir(), "line.png"), type = "cairo")
plot(x, sin(x), type = "l")
invisible(dev.off())
expect(file.size(file.path(tempdir(), "line.png")) > 1000, "the picture is empty")
cat("hazards are estimated, a curve is smoothed, JSON is read, a picture is drawn\n")
